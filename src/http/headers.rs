//! What an answer of vectors says about itself in headers: cache, timings, counts.
//!
//! `Cache-Status` is RFC 9211's, `Server-Timing` W3C's, the `x-…` are text-embeddings-inference's, whose times are
//! whole milliseconds. All values of one answer are written into one buffer and shared from it, because this is done
//! for every hit.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use crate::cache::{Answer, Freshness, Refusal, Timings};
use crate::domain::{Device, Status};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const COMPUTE_TYPE: HeaderName = HeaderName::from_static("x-compute-type");
const COMPUTE_TIME: HeaderName = HeaderName::from_static("x-compute-time");
const COMPUTE_CHARACTERS: HeaderName = HeaderName::from_static("x-compute-characters");
const COMPUTE_TOKENS: HeaderName = HeaderName::from_static("x-compute-tokens");
const TOTAL_TIME: HeaderName = HeaderName::from_static("x-total-time");
const TOKENIZATION_TIME: HeaderName = HeaderName::from_static("x-tokenization-time");
const QUEUE_TIME: HeaderName = HeaderName::from_static("x-queue-time");
const INFERENCE_TIME: HeaderName = HeaderName::from_static("x-inference-time");

/// Room for all values.
const VALUES_BYTES: usize = 352;

/// What the headers say, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) items: usize,
    /// Answered from what was cached, by key or by token ids.
    pub(super) hits: usize,
    pub(super) reused: usize,
    pub(super) joined: usize,
    pub(super) computed: usize,
    pub(super) truncated: usize,
    pub(super) tokens: u64,
    /// Tokens of the items that cost nothing now.
    pub(super) cached_tokens: u64,
    pub(super) characters: usize,
    /// Why no near-duplicate's vector was reused for those that were computed, where that was allowed.
    pub(super) not_reused: Option<Refusal>,
    pub(super) freshness: Freshness,
}

impl Summary {
    pub(super) fn of(answer: &Answer, characters: usize) -> Self {
        let (items, freshness, not_reused) = (answer.items.len(), answer.freshness, answer.not_reused);
        let mut summary = Self { items, characters, not_reused, freshness, ..Self::default() };
        for item in &answer.items {
            let count = match item.status {
                Status::Hit | Status::TokenHit | Status::Remote => &mut summary.hits,
                Status::Joined => &mut summary.joined,
                Status::Reused => &mut summary.reused,
                _ => &mut summary.computed,
            };
            *count += 1;
            summary.truncated += usize::from(item.truncated);
            summary.tokens += u64::from(item.tokens);
            if matches!(item.status, Status::Hit | Status::TokenHit | Status::Remote | Status::Reused) {
                summary.cached_tokens += u64::from(item.tokens);
            }
        }
        summary
    }
}

/// Adds all of an answer's headers.
pub(super) fn write(headers: &mut HeaderMap, summary: &Summary, timings: &Timings, total: Duration, device: Device) {
    headers.reserve(14);
    let mut values = Values { buffer: Vec::with_capacity(VALUES_BYTES) };
    let cache_status = values.cache_status(summary);
    let server_timing = values.server_timing(timings, total);
    let total_ms = values.number(total.as_millis() as u64);
    let characters = values.number(summary.characters as u64);
    let tokens = values.number(summary.tokens);
    let all = Bytes::from(values.buffer);
    let shared = |range: Range<usize>| {
        HeaderValue::from_maybe_shared(all.slice(range)).expect("digits, ASCII letters and punctuation only")
    };
    headers.insert(CACHE_STATUS, shared(cache_status));
    headers.insert(SERVER_TIMING, shared(server_timing));
    let compute_type = match summary {
        Summary { items, hits, .. } if items == hits => "cache",
        Summary { hits: 0, reused: 0, .. } => device.as_str(),
        _ => "mixed",
    };
    headers.insert(COMPUTE_TYPE, HeaderValue::from_static(compute_type));
    headers.insert(COMPUTE_TIME, shared(total_ms.clone()));
    headers.insert(COMPUTE_CHARACTERS, shared(characters));
    headers.insert(COMPUTE_TOKENS, shared(tokens));
    headers.insert(TOTAL_TIME, shared(total_ms));
    headers.insert(TOKENIZATION_TIME, milliseconds(timings.tokenize));
    headers.insert(QUEUE_TIME, milliseconds(timings.queue));
    headers.insert(INFERENCE_TIME, milliseconds(timings.inference));
}

/// Whole milliseconds; nothing is allocated for none.
fn milliseconds(time: Duration) -> HeaderValue {
    match time.as_millis() as u64 {
        0 => HeaderValue::from_static("0"),
        milliseconds => milliseconds.into(),
    }
}

struct Values {
    buffer: Vec<u8>,
}

impl Values {
    fn cache_status(&mut self, summary: &Summary) -> Range<usize> {
        let start = self.buffer.len();
        let Freshness { ttl, stale, bypassed } = summary.freshness;
        self.text(match summary {
            Summary { items, hits, .. } if items == hits => "vecmemo; hit",
            _ if bypassed => "vecmemo; fwd=bypass",
            _ => "vecmemo; fwd=miss",
        });
        for (name, count) in [
            ("; items=", summary.items),
            ("; hits=", summary.hits),
            ("; reused=", summary.reused),
            ("; joined=", summary.joined),
            ("; computed=", summary.computed),
            ("; truncated=", summary.truncated),
        ] {
            self.text(name);
            self.number(count as u64);
        }
        if let Some(ttl) = ttl {
            self.text("; ttl=");
            self.number(u64::from(ttl));
        }
        if stale > 0 {
            self.text("; stale=");
            self.number(stale as u64);
        }
        if let Some(refusal) = summary.not_reused {
            self.text("; reuse=");
            self.text(refusal.as_str());
        }
        start..self.buffer.len()
    }

    fn server_timing(&mut self, timings: &Timings, total: Duration) -> Range<usize> {
        let start = self.buffer.len();
        for (name, time) in [
            ("key;dur=", timings.key),
            (", store;dur=", timings.store),
            (", queue;dur=", timings.queue),
            (", tokenize;dur=", timings.tokenize),
            (", inference;dur=", timings.inference),
            (", write;dur=", timings.write),
            (", total;dur=", total),
        ] {
            self.text(name);
            self.thousandths(time.as_micros() as u64);
        }
        // Only of who may be answered with another text's vector.
        if !timings.reuse.is_zero() {
            self.text(", reuse;dur=");
            self.thousandths(timings.reuse.as_micros() as u64);
        }
        if !timings.remote.is_zero() {
            self.text(", remote;dur=");
            self.thousandths(timings.remote.as_micros() as u64);
        }
        start..self.buffer.len()
    }

    fn text(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, number: u64) -> Range<usize> {
        let start = self.buffer.len();
        self.text(itoa::Buffer::new().format(number));
        start..self.buffer.len()
    }

    /// Microseconds as milliseconds.
    fn thousandths(&mut self, micros: u64) {
        self.number(micros / 1000);
        let rest = micros % 1000;
        if rest > 0 {
            let digits = [rest / 100, rest / 10 % 10, rest % 10].map(|digit| b'0' + digit as u8);
            self.buffer.push(b'.');
            self.buffer.extend_from_slice(&digits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(summary: Summary) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let timings = Timings {
            key: Duration::from_nanos(1_900),
            store: Duration::from_micros(1_050),
            inference: Duration::from_millis(12),
            ..Timings::default()
        };
        write(&mut headers, &summary, &timings, Duration::from_micros(13_400), Device::Cpu);
        headers
    }

    #[test]
    fn cache_status_is_a_hit_only_if_all_items_hit() {
        let hit = headers(Summary { items: 2, hits: 2, tokens: 9, characters: 7, ..Summary::default() });
        assert_eq!(hit["cache-status"], "vecmemo; hit; items=2; hits=2; reused=0; joined=0; computed=0; truncated=0");
        assert_eq!(hit["x-compute-type"], "cache");
        assert_eq!(
            (&hit["x-compute-tokens"], &hit["x-compute-characters"]),
            (&"9".parse().unwrap(), &"7".parse().unwrap())
        );
        let mixed = headers(Summary {
            items: 2,
            hits: 1,
            computed: 1,
            not_reused: Some(Refusal::Uncertified),
            ..Summary::default()
        });
        let status = mixed["cache-status"].to_str().unwrap();
        assert!(status.starts_with("vecmemo; fwd=miss; items=2; hits=1;") && status.ends_with("; reuse=uncertified"));
        assert_eq!(mixed["x-compute-type"], "mixed");
        assert_eq!(headers(Summary { items: 1, joined: 1, ..Summary::default() })["x-compute-type"], "cpu");
    }

    #[test]
    fn cache_status_says_how_long_hits_are_fresh_how_many_are_stale_and_whether_the_cache_was_bypassed() {
        let status = |freshness: Freshness| {
            let summary = Summary { items: 1, hits: usize::from(!freshness.bypassed), freshness, ..Summary::default() };
            headers(summary)["cache-status"].to_str().unwrap().to_owned()
        };
        let fresh = Freshness { ttl: Some(60), ..Freshness::default() };
        assert!(
            status(fresh).starts_with("vecmemo; hit; items=1;") && status(fresh).ends_with("; truncated=0; ttl=60")
        );
        let stale = status(Freshness { ttl: Some(0), stale: 2, ..Freshness::default() });
        assert!(stale.ends_with("; truncated=0; ttl=0; stale=2"), "{stale}");
        assert!(status(Freshness { stale: 1, ..Freshness::default() }).ends_with("; truncated=0; stale=1"));
        let bypassed = status(Freshness { bypassed: true, ..Freshness::default() });
        assert!(bypassed.starts_with("vecmemo; fwd=bypass; items=1; hits=0;"), "{bypassed}");
    }

    #[test]
    fn times_are_milliseconds_with_decimals_by_stage_and_whole_for_tei() {
        let headers = headers(Summary::default());
        assert_eq!(
            headers["server-timing"],
            "key;dur=0.001, store;dur=1.050, queue;dur=0, tokenize;dur=0, inference;dur=12, write;dur=0, total;dur=13.400"
        );
        assert_eq!(
            (&headers["x-total-time"], &headers["x-inference-time"]),
            (&"13".parse().unwrap(), &"12".parse().unwrap())
        );
        assert_eq!(headers["x-queue-time"], "0");
    }
}
