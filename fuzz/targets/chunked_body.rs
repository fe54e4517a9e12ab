//! Fuzzes the decoder of chunked bodies.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::http::fuzz_targets::chunked_body(data));
