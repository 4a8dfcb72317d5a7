//! What stands for a name where the name itself must not stand: in the proof that it was erased.
//!
//! ```text
//! veil = BLAKE3-derive-key("vecmemo 2026 erasure v1", frame(erasure id) ‖ frame(kind) ‖ value), as 64 hexadecimal digits
//! ```
//!
//! Whoever knows the name can show that it is the one; who does not can only try names. Two erasures of one name have veils that
//! nobody can tell to be of the same.

use super::key::frame;

const CONTEXT: &str = "vecmemo 2026 erasure v1";

/// The veil of a name of some kind, for one erasure.
#[must_use]
pub fn veil(erasure: &str, kind: &str, value: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    frame(&mut hasher, erasure.as_bytes());
    frame(&mut hasher, kind.as_bytes());
    hasher.update(value);
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_veil_is_of_one_name_of_one_kind_in_one_erasure() {
        let veils = [veil("a", "tag", b"x"), veil("b", "tag", b"x"), veil("a", "text", b"x"), veil("a", "tag", b"y")];
        assert_eq!(veil("a", "tag", b"x"), veils[0]);
        for (at, one) in veils.iter().enumerate() {
            assert!(one.len() == 64 && veils[..at].iter().all(|other| other != one));
        }
    }
}
