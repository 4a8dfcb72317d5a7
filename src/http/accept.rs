//! Which format an answer takes, by the request's `Accept` (RFC 9110, 12.5.1).

use hyper::HeaderMap;
use hyper::header::{ACCEPT, HeaderValue};

use super::encode::Width;
use super::errors::Error;

/// The formats an answer of vectors can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A list of lists.
    Json,
    /// A NumPy array.
    Npy(Width),
    /// The rows alone.
    Octets(Width),
}

/// The formats of vectors, the one preferred when the client does not care first.
pub(super) const VECTORS: &[&str] = &["application/json", "application/x-npy", "application/octet-stream"];

/// JSON and nothing else.
pub(super) const JSON_ONLY: &[&str] = &["application/json"];

/// Picks the format of an answer of vectors.
///
/// # Errors
/// When the client accepts none of them.
pub(super) fn vectors(headers: &HeaderMap) -> Result<Format, Error> {
    let (index, width) = choose(headers, VECTORS)?;
    Ok(match index {
        0 => Format::Json,
        1 => Format::Npy(width),
        _ => Format::Octets(width),
    })
}

/// Checks that JSON is accepted, where there is nothing else.
///
/// # Errors
/// When it is not.
pub(super) fn json(headers: &HeaderMap) -> Result<(), Error> {
    choose(headers, JSON_ONLY).map(|_| ())
}

/// The index of the offered type with the highest quality; the earlier offer wins a tie.
fn choose(headers: &HeaderMap, offers: &'static [&'static str]) -> Result<(usize, Width), Error> {
    let mut values = headers.get_all(ACCEPT).iter();
    let first = values.next().map(HeaderValue::as_bytes);
    let only = values.next().is_none();
    if only && matches!(first, None | Some(b"" | b"*/*" | b"application/json")) {
        return Ok((0, Width::F16));
    }
    // What our own clients send, word for word.
    if only && let Some(exact) = offers.iter().position(|offer| first == Some(offer.as_bytes())) {
        return Ok((exact, Width::F16));
    }
    let mut best: Option<(u16, usize, Width)> = None;
    for (index, offer) in offers.iter().enumerate() {
        let Some((quality, width)) = quality(headers, offer) else { continue };
        if quality > 0 && best.is_none_or(|(highest, ..)| quality > highest) {
            best = Some((quality, index, width));
        }
    }
    best.map(|(_, index, width)| (index, width)).ok_or(Error::NotAcceptable { offers })
}

/// What the most specific matching range says of an offer: quality in thousandths, and the width it names.
fn quality(headers: &HeaderMap, offer: &str) -> Option<(u16, Width)> {
    let mut found: Option<(u8, u16, Width)> = None;
    let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    for range in ranges {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let mut specificity = match name {
            "*/*" | "*" => 1,
            "application/*" => 2,
            name if name.eq_ignore_ascii_case(offer) => 3,
            _ => continue,
        };
        let (mut quality, mut width, mut known) = (1000, Width::F16, true);
        for parameter in parts.filter(|parameter| !parameter.is_empty()) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match (key.trim().to_ascii_lowercase().as_str(), value.trim().trim_matches('"')) {
                ("q", value) => quality = thousandths(value),
                ("dtype", "f16" | "float16") if specificity == 3 => specificity = 4,
                ("dtype", "f32" | "float32") if specificity >= 3 => (specificity, width) = (4, Width::F32),
                ("dtype", _) => known = false,
                _ => {}
            }
        }
        let better = |&(old, old_quality, _): &(u8, u16, Width)| (specificity, quality) > (old, old_quality);
        if known && found.as_ref().is_none_or(better) {
            found = Some((specificity, quality, width));
        }
    }
    found.map(|(_, quality, width)| (quality, width))
}

/// A quality value as the RFC writes it; anything else counts as 1.
fn thousandths(text: &str) -> u16 {
    match text.parse::<f32>() {
        Ok(quality) if (0.0..=1.0).contains(&quality) => (quality * 1000.0).round() as u16,
        _ => 1000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(values: &[&'static str]) -> Result<Format, Error> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, HeaderValue::from_static(value));
        }
        vectors(&headers)
    }

    #[test]
    fn who_does_not_care_gets_json() {
        for values in [&[][..], &[""], &["*/*"], &["application/json"], &["application/json, text/plain, */*"]] {
            assert_eq!(accept(values).unwrap(), Format::Json, "{values:?}");
        }
    }

    #[test]
    fn the_highest_quality_wins_and_the_most_specific_range_decides() {
        let npy = Format::Npy(Width::F16);
        assert_eq!(accept(&["application/x-npy"]).unwrap(), npy);
        assert_eq!(accept(&["application/json;q=0.5, application/x-npy;q=0.9"]).unwrap(), npy);
        assert_eq!(accept(&["application/json;q=0.5", "application/x-npy"]).unwrap(), npy);
        assert_eq!(accept(&["*/*;q=0.1, application/octet-stream"]).unwrap(), Format::Octets(Width::F16));
        assert_eq!(accept(&["application/*, application/json;q=0"]).unwrap(), npy);
        assert_eq!(accept(&["application/x-npy, application/json"]).unwrap(), Format::Json);
    }

    #[test]
    fn the_width_of_a_number_is_a_parameter() {
        assert_eq!(accept(&["application/x-npy;dtype=f32"]).unwrap(), Format::Npy(Width::F32));
        assert_eq!(accept(&["application/x-npy; dtype=\"f16\"; q=1"]).unwrap(), Format::Npy(Width::F16));
        assert_eq!(accept(&["application/octet-stream;dtype=f32"]).unwrap(), Format::Octets(Width::F32));
    }

    #[test]
    fn none_acceptable_is_an_error() {
        for values in [&["text/html"][..], &["application/json;q=0"], &["application/x-npy;dtype=f64"]] {
            assert!(matches!(accept(values), Err(Error::NotAcceptable { .. })), "{values:?}");
        }
    }
}
