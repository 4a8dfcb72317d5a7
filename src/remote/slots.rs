//! Which server of a cluster keeps a key.
//!
//! A key's slot is the CRC16 of its bytes, or of what stands between its first `{` and the `}` after that, modulo 16,384:
//! the definition in the Redis cluster specification.

use std::collections::{BTreeMap, BTreeSet};

use redis::Value;

use super::url::Address;

/// How many slots a cluster has.
pub(super) const SLOTS: u16 = 16_384;

/// CRC-16/XMODEM: polynomial 0x1021, nothing reflected, begun with zero.
const CRC: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|&byte| byte == b'}').filter(|&length| length > 0).map(|length| &rest[..length])
    });
    let crc = tag.unwrap_or(key).iter().fold(0u16, |crc, &byte| (crc << 8) ^ CRC[usize::from((crc >> 8) as u8 ^ byte)]);
    crc % SLOTS
}

/// The masters' ranges of slots, first and last, in the answer to `CLUSTER SLOTS`. A server that does not know its own
/// address is `asked`.
pub(super) fn masters(value: &Value, asked: &Address) -> Option<BTreeMap<Address, Vec<(u16, u16)>>> {
    let mut masters: BTreeMap<Address, Vec<(u16, u16)>> = BTreeMap::new();
    for range in list(value)? {
        let [first, last, master, ..] = list(range)? else { return None };
        let master = server(master, asked)?;
        let first = u16::try_from(number(first)?).ok()?;
        let last = u16::try_from(number(last)?).ok().filter(|&last| first <= last && last < SLOTS)?;
        masters.entry(master).or_default().push((first, last));
    }
    Some(masters)
}

/// The replicas of each master in the answer to `CLUSTER SLOTS`. What is not understood is left out.
pub(super) fn replicas(value: &Value, asked: &Address) -> BTreeMap<Address, BTreeSet<Address>> {
    let mut replicas: BTreeMap<Address, BTreeSet<Address>> = BTreeMap::new();
    for range in list(value).unwrap_or_default() {
        let [_, _, master, rest @ ..] = list(range).unwrap_or_default() else { continue };
        let Some(master) = server(master, asked) else { continue };
        replicas.entry(master).or_default().extend(rest.iter().filter_map(|replica| server(replica, asked)));
    }
    replicas
}

/// A server by its host and port. One that does not know its own address is `asked`.
fn server(value: &Value, asked: &Address) -> Option<Address> {
    let [host, port, ..] = list(value)? else { return None };
    let host = text(host).filter(|host| !host.is_empty() && *host != "?").unwrap_or(&asked.host).to_owned();
    let port = u16::try_from(number(port)?).ok().filter(|&port| port != 0)?;
    Some(Address { host, port })
}

/// An array's elements.
pub(super) fn list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) | Value::Set(values) => Some(values),
        _ => None,
    }
}

/// A string's text.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        Value::Okay => Some("OK"),
        _ => None,
    }
}

/// A number, or a text that is one.
pub(super) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => text(value)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures of the specification, and of `CLUSTER KEYSLOT` of a server.
    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"foo{}{bar}"), slot(b"foo{}{bar}"));
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{bar"), slot(b"foo{bar"));
    }

    #[test]
    fn an_answer_of_another_shape_is_no_map() {
        let asked = Address { host: "a".into(), port: 1 };
        let server = |host: &str, port: i64| {
            Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::BulkString(b"id".to_vec())])
        };
        let range = |first: i64, last: i64, master| Value::Array(vec![Value::Int(first), Value::Int(last), master]);
        let two = Value::Array(vec![Value::Int(0), Value::Int(5), server("b", 2), server("", 4), Value::Nil]);
        let known = replicas(&Value::Array(vec![two, range(6, 7, server("b", 2)), Value::Nil]), &asked);
        let of_b = &known[&Address { host: "b".into(), port: 2 }];
        assert_eq!(of_b.iter().collect::<Vec<_>>(), [&Address { host: "a".into(), port: 4 }]);
        assert!(known.len() == 1 && replicas(&Value::Nil, &asked).is_empty());
        let answer = Value::Array(vec![
            range(0, 5, server("b", 2)),
            range(7, 7, server("b", 2)),
            range(8, 16383, server("", 3)),
        ]);
        let masters = masters(&answer, &asked).unwrap();
        assert_eq!(masters[&Address { host: "b".into(), port: 2 }], [(0, 5), (7, 7)]);
        assert_eq!(masters[&Address { host: "a".into(), port: 3 }], [(8, 16383)]);
        for wrong in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![range(5, 4, server("b", 2))]),
            Value::Array(vec![range(0, 16384, server("b", 2))]),
            Value::Array(vec![range(-1, 1, server("b", 2))]),
            Value::Array(vec![range(0, 1, server("b", 70000))]),
        ] {
            assert_eq!(super::masters(&wrong, &asked), None, "{wrong:?}");
        }
    }
}
