//! Decimal text of f16 values, by look-up: there are only 65,536 of them.
//!
//! The text of a value is the shortest decimal that parses to exactly its f32 value, the same that `serde_json` writes
//! for that f32. So a JSON answer and a binary one decode to the same bits. Printing a 384-dim vector this way takes a
//! fifteenth of the time of formatting each number (`benches/encode.rs`). Values that are not finite have no decimal
//! and are written `null`; they are never served.

use std::sync::OnceLock;

use half::f16;

/// Text, comma, padding, and in the last byte the length of text and comma; 0 there for the few that do not fit.
type Slot = [u8; SLOT_BYTES];

const SLOT_BYTES: usize = 16;

/// The longest text and its comma: `-0.0000100135803,`.
const TEXT_BYTES_MAX: usize = 17;

static TABLE: OnceLock<Box<[Slot]>> = OnceLock::new();

/// Builds the table now (a few milliseconds) rather than on the first answer.
pub fn prepare() {
    table();
}

/// Appends the values as a JSON list: `[0.5,-1.0]`.
pub fn write_list(out: &mut Vec<u8>, values: &[f16]) {
    out.push(b'[');
    if values.is_empty() {
        out.push(b']');
        return;
    }
    let table = table();
    let start = out.len();
    // Room for the longest texts, so that each is one copy of fixed length; what is left over is cut off again.
    out.resize(start + values.len() * TEXT_BYTES_MAX, 0);
    let room = &mut out[start..];
    let mut end = 0;
    for value in values {
        let slot = &table[usize::from(value.to_bits())];
        room[end..end + SLOT_BYTES].copy_from_slice(slot);
        let mut length = usize::from(slot[SLOT_BYTES - 1]);
        if length == 0 {
            length = write_long(&mut room[end..], *value);
        }
        end += length;
    }
    room[end - 1] = b']';
    out.truncate(start + end);
}

/// Tiny values, of which a vector of any length has next to none, have texts longer than a slot.
#[cold]
fn write_long(room: &mut [u8], value: f16) -> usize {
    let text = text(value);
    room[..text.len()].copy_from_slice(&text);
    text.len()
}

/// Text and comma.
fn text(value: f16) -> Vec<u8> {
    let mut text = serde_json::to_vec(&value.to_f32()).expect("a number is always written to memory");
    text.push(b',');
    text
}

fn table() -> &'static [Slot] {
    TABLE.get_or_init(|| (0..=u16::MAX).map(|bits| slot(&text(f16::from_bits(bits)))).collect())
}

fn slot(text: &[u8]) -> Slot {
    let mut slot = [0; SLOT_BYTES];
    if text.len() < SLOT_BYTES {
        slot[..text.len()].copy_from_slice(text);
        slot[SLOT_BYTES - 1] = text.len() as u8;
    }
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: f16) -> String {
        let mut out = Vec::new();
        write_list(&mut out, &[value]);
        String::from_utf8(out).unwrap().trim_matches(['[', ']']).to_owned()
    }

    #[test]
    fn every_f16_reads_back_exactly_and_reads_as_serde_json_writes_it() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let text = read(value);
            assert!(text.len() < TEXT_BYTES_MAX);
            assert_eq!(text, serde_json::to_string(&value.to_f32()).unwrap());
            if value.is_finite() {
                assert_eq!(text.parse::<f32>().unwrap().to_bits(), value.to_f32().to_bits(), "{text}");
            } else {
                assert_eq!(text, "null");
            }
        }
    }

    #[test]
    fn a_list_is_what_serde_json_writes() {
        let every: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|value| value.is_finite()).collect();
        for values in [&every[..], &every[..1], &[]] {
            let mut out = b"before".to_vec();
            write_list(&mut out, values);
            let plain: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
            assert_eq!(&out[6..], serde_json::to_vec(&plain).unwrap());
        }
    }
}
