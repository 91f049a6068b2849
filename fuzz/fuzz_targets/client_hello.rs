#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::client_hello(bytes));
