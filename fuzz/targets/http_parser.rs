//! Fuzzes the parser of HTTP requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::http::fuzz_targets::http_parser(data));
