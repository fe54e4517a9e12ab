//! The bytes of a connection into requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::http::fuzzing::http_parser(data));
