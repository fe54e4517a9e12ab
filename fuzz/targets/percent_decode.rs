//! The decoder of query values.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::http::fuzzing::decode_percent(data));
