//! A row of the table, and how it is run.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Sent behind a refused request, in the same write: it must never be handled as a request.
const SMUGGLED: &str = "POST /commit?topic={T} HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\nsmuggled";
const DEADLINE: Duration = Duration::from_secs(30);

/// One step of a script.
///
/// In bytes and bodies, `{T}` stands for the topic, `{B}` for five letters that are unique to the row, and `{P}` for
/// the request line and Host of a POST.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Send(Vec<u8>),
    /// A status; then an error code, whose answer must have `stored: no`, or `-` where no body may follow.
    BackendAnswer(String),
    /// The client closes its sending side.
    HalfClose,
}

/// The state of the connection after the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It serves the next request.
    Open,
    Closed,
}

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) section: &'static str,
    steps: Vec<Step>,
    end: End,
    /// The stored bodies.
    stored: Vec<String>,
}

pub(super) fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec())
}

pub(super) fn answer(what: &str) -> Step {
    Step::BackendAnswer(what.to_owned())
}

/// A row of any form.
pub(super) fn script(section: &'static str, steps: &[Step], end: End, stored: &[&str]) -> Row {
    Row { section, steps: steps.to_vec(), end, stored: stored.iter().map(|body| (*body).to_owned()).collect() }
}

/// Bytes and their answers; the connection stays open.
pub(super) fn answered(section: &'static str, bytes: impl AsRef<[u8]>, answers: &[&str], stored: &[&str]) -> Row {
    let answers = answers.iter().map(|what| answer(what));
    script(section, &[send(bytes)].into_iter().chain(answers).collect::<Vec<_>>(), End::Open, stored)
}

/// A POST with further fields and a body, stored as `{B}`.
pub(super) fn stored(section: &'static str, rest: &str) -> Row {
    answered(section, format!("{{P}}{rest}"), &["200"], &["{B}"])
}

/// Bytes that are refused; the connection is closed although another request follows.
pub(super) fn refused(section: &'static str, bytes: impl AsRef<[u8]>, what: &str) -> Row {
    let bytes = [bytes.as_ref(), SMUGGLED.as_bytes()].concat();
    script(section, &[send(bytes), answer(what)], End::Closed, &[])
}

/// As [`refused`], for a POST with further fields and a body.
pub(super) fn refused_post(section: &'static str, rest: &str, what: &str) -> Row {
    refused(section, format!("{{P}}{rest}"), what)
}

impl Row {
    /// The beginning of the bytes that it sends first.
    pub(super) fn excerpt(&self) -> String {
        match &self.steps[..] {
            [Step::Send(bytes), ..] => format!("{:.150}", format!("{:?}", String::from_utf8_lossy(bytes))),
            _ => String::new(),
        }
    }

    /// Runs the row; returns the bodies that must be stored.
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
                // The connection may be closed already.
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

/// A connection whose answers are parsed strictly.
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
