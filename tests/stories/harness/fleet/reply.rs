//! What a backend of a fleet sends as the answer to a request: correct, slow, wrong or hostile, as data.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How much of a request the backend reads before it replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Only the request line and the headers.
    Head,
    All,
}

/// What happens to the connection after the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The backend reads the next request.
    KeepAlive,
    /// The backend closes the connection.
    Close,
    /// The backend sends FIN, and closes the connection after this time without having read the rest of the request.
    CloseLater(Duration),
    /// The backend sends nothing more and waits until the client closes the connection.
    Hold,
}

/// One reply. Bytes are sent as they are, so that a story can send any answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) reads: Reads,
    /// The time between the request and the reply.
    pub(crate) after: Duration,
    /// The status that a correct client takes from `bytes`; `None` if there is none.
    pub(crate) status: Option<u16>,
    pub(crate) bytes: Vec<u8>,
    /// Sent after `bytes`: a piece, how many times, and the pause before each.
    pub(crate) repeated: Option<(Vec<u8>, u64, Duration)>,
    pub(crate) ending: Ending,
}

impl Reply {
    pub(crate) fn ok() -> Reply {
        Reply::status(200)
    }

    pub(crate) fn status(status: u16) -> Reply {
        Reply::with_fields(status, "")
    }

    /// An answer with these header fields, each ended by CR LF.
    pub(crate) fn with_fields(status: u16, fields: &str) -> Reply {
        Reply::raw(Some(status), &format!("HTTP/1.1 {status} Scripted\r\n{fields}Content-Length: 4\r\n\r\ndone"))
    }

    /// Sends these bytes; a correct client takes `status` from them.
    pub(crate) fn raw(status: Option<u16>, bytes: &str) -> Reply {
        Reply {
            reads: Reads::All,
            after: Duration::ZERO,
            status,
            bytes: bytes.as_bytes().to_vec(),
            repeated: None,
            ending: Ending::KeepAlive,
        }
    }

    pub(crate) fn after(mut self, after: Duration) -> Reply {
        self.after = after;
        self
    }

    pub(crate) fn ending(mut self, ending: Ending) -> Reply {
        self.ending = ending;
        self
    }

    pub(crate) fn repeating(mut self, piece: &[u8], times: u64, pause: Duration) -> Reply {
        self.repeated = Some((piece.to_vec(), times, pause));
        self
    }

    /// Answers after the head of the request, and closes the connection without having read the body.
    pub(crate) fn early(mut self) -> Reply {
        self.reads = Reads::Head;
        self.ending(Ending::CloseLater(Duration::from_millis(200)))
    }

    /// Reads the request and never answers.
    pub(crate) fn hang() -> Reply {
        Reply::raw(None, "").ending(Ending::Hold)
    }

    /// Reads the request and closes the connection.
    pub(crate) fn close() -> Reply {
        Reply::raw(None, "").ending(Ending::Close)
    }

    /// Answers with bytes that are not HTTP.
    pub(crate) fn garbage() -> Reply {
        Reply::raw(None, "\u{0}\u{1}SSH-2.0-OpenSSH_9.6\r\n\r\n\u{fffd}\u{7f}\n\n").ending(Ending::Close)
    }

    /// A status line and header fields without an end.
    pub(crate) fn endless_head() -> Reply {
        let field = format!("X-Filler: {}\r\n", "x".repeat(1000));
        let start = Reply::raw(Some(200), "HTTP/1.1 200 OK\r\n");
        start.repeating(field.as_bytes(), u64::MAX, Duration::ZERO).ending(Ending::Close)
    }

    /// A status and this number of header fields.
    pub(crate) fn many_fields(status: u16, n_fields: usize) -> Reply {
        let fields: String = (0..n_fields).map(|number| format!("X-Field-{number}: x\r\n")).collect();
        Reply::with_fields(status, &fields)
    }

    /// A body of 1 GB with its length.
    pub(crate) fn huge_body(status: u16) -> Reply {
        let head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: 1000000000\r\n\r\n");
        Reply::raw(Some(status), &head).repeating(&[b'x'; 10_000], 100_000, Duration::ZERO)
    }

    /// A status and a length, and no body.
    pub(crate) fn without_its_body(status: u16) -> Reply {
        let head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: 10\r\n\r\n");
        Reply::raw(Some(status), &head).ending(Ending::Hold)
    }

    /// A chunked body that never ends, with one chunk in each `pause`.
    pub(crate) fn endless_chunks(status: u16, pause: Duration) -> Reply {
        let head = format!("HTTP/1.1 {status} Scripted\r\nTransfer-Encoding: chunked\r\n\r\n");
        Reply::raw(Some(status), &head).repeating(b"1\r\nx\r\n", u64::MAX, pause)
    }

    /// An interim answer, with header fields or without, and then the status.
    pub(crate) fn interim_first(interim: u16, fields: &str, status: u16) -> Reply {
        let first = format!("HTTP/1.1 {interim} Interim\r\n{fields}\r\n");
        let last = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: 0\r\n\r\n");
        Reply::raw(Some(status), &format!("{first}{last}"))
    }

    /// A redirect to `location`.
    pub(crate) fn redirect(location: &str) -> Reply {
        Reply::with_fields(307, &format!("Location: {location}\r\n"))
    }

    /// `Retry-After` in seconds.
    pub(crate) fn retry_after(status: u16, seconds: u64) -> Reply {
        Reply::with_fields(status, &format!("Retry-After: {seconds}\r\n"))
    }

    /// `Retry-After` as a date.
    pub(crate) fn retry_at(status: u16, time: SystemTime) -> Reply {
        Reply::with_fields(status, &format!("Retry-After: {}\r\n", http_date(time)))
    }
}

/// Returns the time in the form of RFC 9110, section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn http_date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
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
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][month];
    // 1 January 1970 was a Thursday.
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday}, {:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_has_the_form_of_http() {
        for (seconds, text) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        ] {
            assert_eq!(http_date(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
