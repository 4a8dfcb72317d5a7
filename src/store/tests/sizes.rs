//! Vectors of every usual length, and of the shortest: kept bit for bit.

use super::*;

#[test]
fn vectors_of_any_length_are_kept_bit_for_bit_across_a_reopen() {
    const ENTRIES: u32 = 9;
    for dims in [1, 2, 128, 384, 768, 1024, 1536, 3072, 8192] {
        let folder = quick_folder();
        let open = |capacity| Store::open(folder.path(), &version("m"), dims, &config(capacity)).unwrap();
        // All finite values come up, the smallest and the largest too.
        let value = |n: u32, place: usize| f16::from_bits((n * 8191 + place as u32 * 31) as u16 & 0xfbff);
        let rows: Vec<Vec<f16>> = (0..ENTRIES).map(|n| (0..dims).map(|place| value(n, place)).collect()).collect();
        let namespace = Namespace::default();
        let entries: Vec<_> =
            (0..).zip(&rows).map(|(n, row)| NewEntry::new(key(n), row, n as f32, &namespace)).collect();
        let store = open(12);
        store.put_many(&entries, NOW).unwrap();
        let check = |store: &Store, when: &str| {
            let found = served(store, 0..ENTRIES, NOW);
            for (n, row) in (0..).zip(&rows) {
                let bits = |row: &[f16]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found[&n].0), bits(row), "{dims} values, entry {n}, {when}");
                assert_eq!(found[&n].1, n as f32);
            }
            assert_eq!((store.info().quarantined, store.info().dims), (0, dims));
        };
        check(&store, "at once");
        drop(store);
        check(&open(12), "after a reopen");
        let copy = crashed_copy(folder.path());
        drop(Store::open(copy.path(), &version("m"), dims, &config(12)).unwrap());
        check(&open(40), "in a larger file");
        check(&open(ENTRIES.into()), "in a smaller file");
        let longer = Store::open(folder.path(), &version("m"), dims + 1, &config(12));
        assert!(matches!(longer, Err(StoreError::OtherDims { .. })));
    }
}
