#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vecmemo_fuzz::snapshot::run(input));
