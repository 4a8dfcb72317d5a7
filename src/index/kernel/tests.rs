use super::super::lines::Lines;
use super::*;

/// Numbers that look random, the same every time.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

#[test]
fn every_kernel_computes_what_a_loop_does() {
    for (stride, queries, rows) in [(64, 1, 1), (64, 2, 3), (128, 3, 64), (384, 5, 9), (1024, 2, 4), (384, 4, 0)] {
        let mut number = numbers(stride as u64 + rows as u64);
        let mut codes = Lines::<i8>::zeroed(100 * stride);
        let mut words = Lines::<i16>::zeroed(queries * stride);
        codes.as_mut_slice().fill_with(|| (number() % 255) as i8);
        words.as_mut_slice().fill_with(|| (number() % 8001) as i16 - 4000);
        let picked: Vec<u16> = (0..rows).map(|_| (number() % 100) as u16).collect();
        for kernel in Kernel::supported() {
            let mut products = vec![[0; BLOCK_ROWS]; queries];
            let block = Block { codes: codes.as_slice(), stride, rows: &picked, next: &[99, 0] };
            kernel.multiply(block, words.as_slice(), &mut products);
            for (query, products) in words.as_slice().chunks(stride).zip(&products) {
                for (&row, &product) in picked.iter().zip(products) {
                    let row = &codes.as_slice()[usize::from(row) * stride..][..stride];
                    let expected: i32 = query.iter().zip(row).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                    assert_eq!(product, expected, "{} {stride} {queries}", kernel.name);
                }
            }
        }
    }
}

#[test]
fn rows_that_lie_apart_and_pairs_of_rows_are_multiplied_as_a_loop_does() {
    for (stride, rows) in [(64, 1), (128, 3), (384, 64), (1024, 5), (64, 0)] {
        let mut number = numbers(stride as u64 + rows as u64);
        let mut codes = Lines::<i8>::zeroed(70 * stride);
        let mut words = Lines::<i16>::zeroed(stride);
        codes.as_mut_slice().fill_with(|| (number() % 255) as i8);
        words.as_mut_slice().fill_with(|| (number() % 8001) as i16 - 4000);
        let codes = codes.as_slice();
        let picked: Vec<u32> = (0..rows).map(|_| (number() % 70) as u32).collect();
        let row = |row: u32| &codes[row as usize * stride..][..stride];
        for kernel in Kernel::supported() {
            let mut products = [0; BLOCK_ROWS];
            kernel.gather(codes, &picked, words.as_slice(), &mut products);
            for (&at, &product) in picked.iter().zip(&products) {
                let expected: i32 =
                    words.as_slice().iter().zip(row(at)).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                assert_eq!(product, expected, "{} {stride}", kernel.name);
                let expected: i32 = row(0).iter().zip(row(at)).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                assert_eq!(kernel.pair(row(0), row(at)), expected, "{} {stride}", kernel.name);
            }
        }
    }
}

#[test]
#[should_panic(expected = "assertion failed")]
fn a_row_past_the_end_is_not_gathered() {
    Kernel::supported()[0].gather(&[0; 64], &[1], &[0; 64], &mut [0; BLOCK_ROWS]);
}

#[test]
fn every_kernel_has_room_for_the_largest_sums() {
    let stride = 512;
    let (codes, words) = (vec![-127i8; stride], vec![32_767i16; stride]);
    for kernel in Kernel::supported() {
        let mut products = [[0; BLOCK_ROWS]];
        let block = Block { codes: &codes, stride, rows: &[0], next: &[] };
        kernel.multiply(block, &words, &mut products);
        assert_eq!(products[0][0], -127 * 32_767 * stride as i32, "{}", kernel.name);
    }
}

#[test]
#[should_panic(expected = "assertion failed")]
fn a_row_past_the_end_is_refused() {
    let block = Block { codes: &[0; 64], stride: 64, rows: &[1], next: &[] };
    Kernel::supported()[0].multiply(block, &[0; 64], &mut [[0; BLOCK_ROWS]]);
}
