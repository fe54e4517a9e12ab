//! Encodes responses as HTTP/1.1 bytes.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use super::message::Response;
use super::response_body::Body;
use crate::decimal::push_decimal;

/// Properties of the request and its connection on which the encoding of the response depends.
#[derive(Clone, Copy, Debug)]
pub(super) struct EncodeOptions {
    /// The request was HEAD: the response has no body.
    pub(super) head_only: bool,
    /// The connection stays open after the response.
    pub(super) keep_alive: bool,
    /// With `keep_alive`: `timeout` of the `Keep-Alive` header, in seconds; 0 sends no such header.
    pub(super) keep_alive_seconds: u64,
    /// The request was HTTP/1.0.
    pub(super) is_http10: bool,
}

/// Appends a response to `out`.
pub(super) fn encode(response: &Response, options: EncodeOptions, out: &mut Vec<u8>) {
    encode_head(response, options, out);
    if has_body(response.status) && !options.head_only {
        response.body.parts().iter().for_each(|part| out.extend_from_slice(part));
    }
}

/// Returns whether responses of this status have a body.
pub(super) fn has_body(status: u16) -> bool {
    status != 204 && status != 304
}

/// Appends the status line and the headers of a response to `out`. Without `std::fmt`, which would take a large part of
/// the time of a short response.
pub(super) fn encode_head(response: &Response, options: EncodeOptions, out: &mut Vec<u8>) {
    let status = response.status;
    out.extend_from_slice(b"HTTP/1.1 ");
    push_decimal(out, status.into());
    put(out, &[" ", reason(status), "\r\nDate: "]);
    put_date(out);
    if !response.content_type.is_empty() {
        put(out, &["\r\nContent-Type: ", response.content_type]);
    }
    // A HEAD response may leave the length out if it is known only after rendering (RFC 9110 8.6).
    if has_body(status) && !matches!(response.body, Body::Omitted) {
        out.extend_from_slice(b"\r\nContent-Length: ");
        push_decimal(out, response.body.len() as u64);
    }
    for (name, value) in &response.headers {
        put(out, &["\r\n", name, ": ", value]);
    }
    if !options.keep_alive {
        out.extend_from_slice(b"\r\nConnection: close");
    } else if options.keep_alive_seconds > 0 {
        // The option `keep-alive` also names the field as one of this connection only (RFC 9110 7.6.1).
        out.extend_from_slice(b"\r\nConnection: keep-alive\r\nKeep-Alive: timeout=");
        push_decimal(out, options.keep_alive_seconds);
    } else if options.is_http10 {
        out.extend_from_slice(b"\r\nConnection: keep-alive");
    }
    out.extend_from_slice(b"\r\n\r\n");
}

fn put(out: &mut Vec<u8>, parts: &[&str]) {
    parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
}

/// Returns the reason phrase of a status. Each status that this program sends needs an entry here: a handler that uses
/// a new status gets no error, but its status line then has an empty phrase.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        // RFC 9112 4 allows an empty phrase. If a status of this program gets here, add its phrase above.
        _ => "",
    }
}

/// Appends the value of the `Date` header. Each thread formats the date at most once a second.
fn put_date(out: &mut Vec<u8>) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with_borrow_mut(|(second, text)| {
        if *second != now {
            (*second, *text) = (now, date(now));
        }
        out.extend_from_slice(text.as_bytes());
    });
}

/// Formats a Unix time in seconds as an IMF-fixdate (RFC 9110 5.6.7).
fn date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = seconds / 86_400;
    let weekday = DAYS[usize::try_from(days % 7).expect("less than 7")];
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{weekday}, {:02} {} {year} {hour:02}:{minute:02}:{second:02} GMT", day + 1, MONTHS[month])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(response: &Response, head_only: bool, keep_alive: bool, is_http10: bool) -> String {
        let mut out = Vec::new();
        encode(response, EncodeOptions { head_only, keep_alive, keep_alive_seconds: 0, is_http10 }, &mut out);
        let text = String::from_utf8(out).unwrap();
        let (start, rest) = text.split_once("Date: ").unwrap();
        format!("{start}{}", rest.split_once("\r\n").unwrap().1)
    }

    #[test]
    fn a_response_has_its_length_and_a_connection_header_where_needed() {
        let response = Response::text(200, "abc").with_header("Allow", "GET");
        let fields = "Content-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\nAllow: GET\r\n";
        assert_eq!(encoded(&response, false, true, false), format!("HTTP/1.1 200 OK\r\n{fields}\r\nabc"));
        assert_eq!(
            encoded(&response, true, true, true),
            format!("HTTP/1.1 200 OK\r\n{fields}Connection: keep-alive\r\n\r\n")
        );
        assert_eq!(
            encoded(&response, false, false, true),
            format!("HTTP/1.1 200 OK\r\n{fields}Connection: close\r\n\r\nabc")
        );
        assert_eq!(encoded(&Response::new(204, "", ""), false, true, false), "HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(encoded(&Response::new(304, "", "x"), false, true, false), "HTTP/1.1 304 Not Modified\r\n\r\n");
        let omitted = Response::new(200, "text/plain", Body::Omitted);
        assert_eq!(encoded(&omitted, true, true, false), "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n");
        assert_eq!(
            encoded(&Response::new(299, "", ""), false, true, false),
            "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n"
        );
    }

    #[test]
    fn a_connection_that_stays_open_says_for_how_long() {
        let response = Response::new(204, "", "");
        for (keep_alive, is_http10, fields) in [
            (true, false, "Connection: keep-alive\r\nKeep-Alive: timeout=70\r\n"),
            (true, true, "Connection: keep-alive\r\nKeep-Alive: timeout=70\r\n"),
            (false, false, "Connection: close\r\n"),
            (false, true, "Connection: close\r\n"),
        ] {
            let mut out = Vec::new();
            let options = EncodeOptions { head_only: false, keep_alive, keep_alive_seconds: 70, is_http10 };
            encode(&response, options, &mut out);
            let text = String::from_utf8(out).unwrap();
            assert!(text.ends_with(&format!("GMT\r\n{fields}\r\n")), "{text}");
        }
    }

    #[test]
    fn dates_are_formatted_as_imf_fixdates() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
