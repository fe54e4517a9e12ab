//! A row of the table, and the code that runs it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// A request that is sent directly after a refused one, in the same write. kproxy must not handle it.
const SMUGGLED: &str = "POST /commit?topic={T} HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\nsmuggled";
const DEADLINE: Duration = Duration::from_secs(30);

/// One step of a script.
///
/// In bytes and bodies, `{T}` stands for the topic, `{B}` for five characters that are unique to the row, and `{P}` for
/// the request line and the Host field of a POST to `/commit`.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Send(Vec<u8>),
    /// Expects an answer with this status. A second word is the `error` of the body, which must also have
    /// `"stored":"no"`; the word `-` means that the answer has no body.
    BackendAnswer(String),
    /// Closes the sending side of the client's connection.
    HalfClose,
}

/// The state of the connection after the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The connection serves another request.
    Open,
    Closed,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) section: &'static str,
    steps: Vec<Step>,
    end: End,
    /// The bodies of this row that must be stored.
    stored: Vec<String>,
}

pub(super) fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec())
}

pub(super) fn answer(what: &str) -> Step {
    Step::BackendAnswer(what.to_owned())
}

/// A row with any steps.
pub(super) fn script(section: &'static str, steps: &[Step], end: End, stored: &[&str]) -> Row {
    Row { section, steps: steps.to_vec(), end, stored: stored.iter().map(|body| (*body).to_owned()).collect() }
}

/// A row that sends these bytes and expects these answers; the connection stays open.
pub(super) fn answered(section: &'static str, bytes: impl AsRef<[u8]>, answers: &[&str], stored: &[&str]) -> Row {
    let answers = answers.iter().map(|what| answer(what));
    script(section, &[send(bytes)].into_iter().chain(answers).collect::<Vec<_>>(), End::Open, stored)
}

/// A row that sends a POST; `rest` is its further fields and its body, which is stored as `{B}`.
pub(super) fn stored(section: &'static str, rest: &str) -> Row {
    answered(section, format!("{{P}}{rest}"), &["200"], &["{B}"])
}

/// A row whose bytes are refused with the answer `what`. The connection is closed although another request follows.
pub(super) fn refused(section: &'static str, bytes: impl AsRef<[u8]>, what: &str) -> Row {
    let bytes = [bytes.as_ref(), SMUGGLED.as_bytes()].concat();
    script(section, &[send(bytes), answer(what)], End::Closed, &[])
}

/// A row whose POST is refused with the answer `what`; `rest` is its further fields and its body.
pub(super) fn refused_post(section: &'static str, rest: &str, what: &str) -> Row {
    refused(section, format!("{{P}}{rest}"), what)
}

impl Row {
    /// Returns the beginning of the bytes that the row sends first.
    pub(super) fn excerpt(&self) -> String {
        match &self.steps[..] {
            [Step::Send(bytes), ..] => format!("{:.150}", format!("{:?}", String::from_utf8_lossy(bytes))),
            _ => String::new(),
        }
    }

    /// Runs the row; returns the bodies that must be stored, or the reason of the failure.
    pub(super) fn run(&self, address: &str, topic: &str, number: usize) -> Result<Vec<Vec<u8>>, String> {
        let fill = |bytes: &[u8]| {
            let post = format!("POST /commit?topic={topic} HTTP/1.1\r\nHost: h\r\n");
            let bytes = replace(bytes, b"{P}", post.as_bytes());
            replace(&replace(&bytes, b"{T}", topic.as_bytes()), b"{B}", format!("b{number:04}").as_bytes())
        };
        let mut wire = Wire::connect(address).map_err(|error| error.to_string())?;
        let mut sends = true;
        for step in &self.steps {
            match step {
                Step::Send(bytes) => wire.send(&fill(bytes)).map_err(|error| format!("sending: {error}"))?,
                Step::HalfClose => {
                    sends = false;
                    wire.0.get_ref().shutdown(Shutdown::Write).map_err(|error| error.to_string())?;
                }
                Step::BackendAnswer(what) => {
                    wire.expect(what).map_err(|error| format!("expected the answer {what}: {error}"))?;
                }
            }
        }
        if self.end == End::Open {
            let sent = wire.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").map_err(|error| error.to_string());
            sent.and_then(|()| wire.expect("200")).map_err(|error| format!("the next request: {error}"))?;
        } else {
            if sends {
                // The send fails if kproxy has closed the connection already.
                let _ = wire.send(&fill(SMUGGLED.as_bytes()));
            }
            let mut rest = Vec::new();
            wire.0.read_to_end(&mut rest).map_err(|error| format!("expected the end of the connection: {error}"))?;
            if !rest.is_empty() {
                return Err(format!("an unexpected further answer: {:.200}", String::from_utf8_lossy(&rest)));
            }
        }
        Ok(self.stored.iter().map(|body| fill(body.as_bytes())).collect())
    }
}

fn replace(bytes: &[u8], mark: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(with);
        rest = &rest[at + mark.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// A client connection that parses answers strictly.
struct Wire(BufReader<TcpStream>);

impl Wire {
    fn connect(address: &str) -> io::Result<Wire> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Wire(BufReader::new(stream)))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.0.read_line(&mut line).map_err(|error| error.to_string())?;
        line.strip_suffix("\r\n").map(str::to_owned).ok_or(format!("the connection ended after {line:?}"))
    }

    fn expect(&mut self, what: &str) -> Result<(), String> {
        let (status, word) = what.split_once(' ').unwrap_or((what, ""));
        let first = self.line()?;
        let mut length = None;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some(text) = line.strip_prefix("Content-Length: ") {
                length = Some(text.parse::<usize>().map_err(|error| error.to_string())?);
            }
        }
        let mut body = Vec::new();
        if word != "-" && !first.starts_with("HTTP/1.1 1") {
            body.resize(length.ok_or("an answer without Content-Length")?, 0);
            self.0.read_exact(&mut body).map_err(|error| error.to_string())?;
        }
        let text = String::from_utf8_lossy(&body);
        if first.split(' ').nth(1) != Some(status) {
            return Err(format!("{first:?} {text}"));
        }
        if !word.is_empty() && word != "-" {
            let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            let is_right = json["error"] == word && json["stored"] == "no" && json["retriable"].is_boolean();
            return if is_right { Ok(()) } else { Err(format!("{first:?} {text}")) };
        }
        Ok(())
    }
}
