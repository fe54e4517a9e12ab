//! The format of a line: `2026-01-02T15:04:05.678+08:00 NOTICE [http-0] message`, always exactly one line.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::Level;

use crate::panics;

/// Longer messages are cut, so that a large value cannot make a line of unbounded length.
const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// Appends a whole line to `line`, newline included.
pub(super) fn format_line(line: &mut Vec<u8>, level: Level, thread: &str, origin: Option<&str>, text: fmt::Arguments) {
    append_time(line, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    for part in [" ", level_word(level), " ["] {
        line.extend_from_slice(part.as_bytes());
    }
    let mut message = Message { line, left_bytes: MAX_MESSAGE_BYTES, cut_bytes: 0 };
    // Writing into memory does not fail. Only the `Display` of a value can fail or panic; the message then ends at that
    // value.
    let _ = message.write_str(thread);
    let _ = message.write_str("] ");
    if let Some(origin) = origin {
        let _ = message.write_str(origin);
        let _ = message.write_str(": ");
    }
    match panics::catch(|| message.write_fmt(text)) {
        Ok(Ok(())) => {}
        Ok(Err(_)) => message.line.extend_from_slice(b" (formatting a value failed)"),
        Err(_) => message.line.extend_from_slice(b" (formatting a value panicked)"),
    }
    if message.cut_bytes != 0 {
        let note = format!(" ({} bytes more)", message.cut_bytes);
        message.line.extend_from_slice(note.as_bytes());
    }
    line.push(b'\n');
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::Error => "FATAL",
        Level::Warn => "WARNING",
        Level::Info => "NOTICE",
        Level::Debug => "TRACE",
        Level::Trace => "DEBUG",
    }
}

/// Escapes characters that could end a line or control a terminal, so that no value can forge a line.
struct Message<'a> {
    line: &'a mut Vec<u8>,
    left_bytes: usize,
    cut_bytes: usize,
}

impl Write for Message<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let kept = text.floor_char_boundary(self.left_bytes);
        self.cut_bytes += text.len() - kept;
        let text = &text[..kept];
        self.left_bytes = if kept < self.left_bytes && self.cut_bytes != 0 { 0 } else { self.left_bytes - kept };
        // All bytes are looked at, without an early end: the compiler then makes it vector instructions.
        if text.bytes().fold(true, |is_so_far, byte| is_so_far & is_harmless(byte)) {
            self.line.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        for character in text.chars() {
            // Control characters, and the two Unicode line separators.
            if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
                self.line.extend(character.escape_default().map(|escaped| escaped as u8));
            } else {
                let mut bytes = [0; 4];
                self.line.extend_from_slice(character.encode_utf8(&mut bytes).as_bytes());
            }
        }
        Ok(())
    }
}

/// Returns whether the byte belongs to printable ASCII, or to a character that is certainly no C1 control and no
/// Unicode line separator.
fn is_harmless(byte: u8) -> bool {
    !matches!(byte, 0..=0x1f | 0x7f | 0xc2 | 0xe2)
}

fn append_time(line: &mut Vec<u8>, since_1970: Duration) {
    thread_local! {
        /// The second of this thread's last line, with its time and zone as text: localtime_r is called once a second.
        static SECOND: Cell<(u64, [u8; 19], [u8; 6])> = const { Cell::new((u64::MAX, [b'?'; 19], [b'?'; 6])) };
    }
    let seconds = since_1970.as_secs();
    // A thread that is ending has no thread-locals any more, so it formats the time again for each line.
    let cached = SECOND.try_with(Cell::get).ok().filter(|(second, ..)| *second == seconds);
    let (_, clock, zone) = cached.unwrap_or_else(|| {
        let (clock, zone) = local_time(seconds);
        let _ = SECOND.try_with(|second| second.set((seconds, clock, zone)));
        (seconds, clock, zone)
    });
    let millis = since_1970.subsec_millis();
    let digit = |number: u32| b'0' + u8::try_from(number % 10).unwrap_or_default();
    line.extend_from_slice(&clock);
    line.extend_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis)]);
    line.extend_from_slice(&zone);
}

/// Returns the local time as in `2026-01-02T15:04:05`, and its zone as in `+08:00`.
fn local_time(seconds: u64) -> ([u8; 19], [u8; 6]) {
    let time: libc::time_t = i64::try_from(seconds).unwrap_or_default();
    // SAFETY: an all-zero tm is a valid one.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call; localtime_r keeps neither.
    unsafe { libc::localtime_r(&raw const time, &raw mut parts) };
    let clock = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        parts.tm_year + 1900,
        parts.tm_mon + 1,
        parts.tm_mday,
        parts.tm_hour,
        parts.tm_min,
        parts.tm_sec
    );
    let minutes = parts.tm_gmtoff / 60;
    let sign = if minutes < 0 { '-' } else { '+' };
    let zone = format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60);
    (clock.as_bytes().try_into().unwrap_or([b'?'; 19]), zone.as_bytes().try_into().unwrap_or([b'?'; 6]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: fmt::Arguments) -> String {
        let mut line = Vec::new();
        format_line(&mut line, Level::Info, "t\n0", None, text);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_line_has_time_level_thread_and_message() {
        let text = line(format_args!("stored {}", 3));
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(rest, "NOTICE [t\\n0] stored 3\n");
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape.replace('-', "+"), "9999+99+99T99:99:99.999+99:99", "{time}");
    }

    #[test]
    fn no_value_can_end_a_line_or_control_a_terminal() {
        let text = line(format_args!("{}", "a\r\n\u{1b}[31m\u{85}\u{2028}\u{7f}é€ \0"));
        assert!(text.ends_with("] a\\r\\n\\u{1b}[31m\\u{85}\\u{2028}\\u{7f}é€ \\u{0}\n"), "{text}");
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let text = line(format_args!("{}{}", "€".repeat(MAX_MESSAGE_BYTES / 2), "tail"));
        assert!(text.len() < MAX_MESSAGE_BYTES + 100, "{}", text.len());
        let (_, note) = text.rsplit_once("€ (").unwrap();
        assert!(note.ends_with(" bytes more)\n"), "{note}");
    }

    #[test]
    fn a_message_ends_at_a_value_whose_display_panics_or_fails() {
        struct Panicking;
        impl fmt::Display for Panicking {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("not me")
            }
        }
        struct Failing;
        impl fmt::Display for Failing {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                Err(fmt::Error)
            }
        }
        assert!(line(format_args!("a {Panicking} b")).ends_with("a  (formatting a value panicked)\n"));
        assert!(line(format_args!("a {Failing} b")).ends_with("a  (formatting a value failed)\n"));
        assert!(line(format_args!("fine")).ends_with("] fine\n"));
    }
}
