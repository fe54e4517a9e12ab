//! The command line of operators: sends one operation to the `admin_port` of the ktransfer on this host, and prints the
//! answer in plain lines.
//!
//! The secret of the operator comes from the environment, never from the command line, which other users of the host
//! can read: `KTRANSFER_TOKEN`, or `KTRANSFER_USER` and `KTRANSFER_PASSWORD`.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::MAX_WAIT;

/// Time limit for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the answer: an operation may take [`MAX_WAIT`] several times, and look offsets up before.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// Largest answer.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// The operation on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientArguments {
    /// `status`, `pause`, `resume`, `skip` or `seek`.
    pub(crate) operation: &'static str,
    /// Name of the module; empty for the status of all modules.
    pub(crate) module: String,
    /// `--partition`
    pub(crate) partition: Option<String>,
    /// `--offset`
    pub(crate) offset: Option<String>,
    /// `--to`: `earliest`, `end`, or a time.
    pub(crate) to: Option<String>,
    /// `--no-dead-letter`
    pub(crate) has_no_letter: bool,
    /// `--dry-run`
    pub(crate) is_dry_run: bool,
}

/// Why there is no answer that says "done".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientError {
    /// Nothing was changed.
    NotDone(String),
    /// Whether something was changed is unknown.
    Unknown(String),
}

/// An HTTP request to `admin_port`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HttpRequest {
    method: &'static str,
    path: String,
    body: String,
}

/// Sends the operation and returns what is to be printed.
pub(crate) fn run(
    port: Option<u16>,
    arguments: &ClientArguments,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<String, ClientError> {
    let not_done = ClientError::NotDone;
    let port =
        port.ok_or_else(|| not_done("the configuration has no admin_port, where operators use it".to_owned()))?;
    let request = http_request(arguments).map_err(not_done)?;
    let authorization = match arguments.operation {
        "status" => None,
        _ => Some(authorization(environment).map_err(not_done)?),
    };
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .map_err(|cause| not_done(format!("cannot connect to admin_port {port} of this host: {cause}")))?;
    let (status, body) = exchange(stream, &request, authorization.as_deref())
        .map_err(|cause| ClientError::Unknown(format!("no answer of admin_port {port}: {cause}")))?;
    let answer: Value = serde_json::from_str(&body)
        .map_err(|cause| ClientError::Unknown(format!("admin_port {port} answered {status} without JSON: {cause}")))?;
    let text = if arguments.operation == "status" { shown_status(&answer) } else { shown_answer(&answer) };
    match status {
        200..=299 => Ok(text),
        504 => Err(ClientError::Unknown(text)),
        _ => Err(ClientError::NotDone(text)),
    }
}

fn authorization(environment: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let has_line_end = |text: &String| text.contains(['\r', '\n']);
    let given = ["KTRANSFER_TOKEN", "KTRANSFER_USER", "KTRANSFER_PASSWORD"].map(environment);
    if given.iter().flatten().any(has_line_end) {
        return Err("KTRANSFER_TOKEN, KTRANSFER_USER and KTRANSFER_PASSWORD must be one line".to_owned());
    }
    match given {
        [Some(token), ..] => Ok(format!("Bearer {token}")),
        [None, Some(user), Some(password)] => Ok(format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))),
        _ => Err("set KTRANSFER_TOKEN, or KTRANSFER_USER and KTRANSFER_PASSWORD, in the environment".to_owned()),
    }
}

fn http_request(arguments: &ClientArguments) -> Result<HttpRequest, String> {
    let mut path = "/v1/modules".to_owned();
    if !arguments.module.is_empty() {
        path.push('/');
        for byte in arguments.module.bytes() {
            let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            let _ = if is_plain { write!(path, "{}", char::from(byte)) } else { write!(path, "%{byte:02X}") };
        }
    }
    if arguments.operation == "status" {
        return Ok(HttpRequest { method: "GET", path, body: String::new() });
    }
    let _ = write!(path, "/{}", arguments.operation);
    if arguments.is_dry_run {
        path.push_str("?dry_run=1");
    }
    let mut body = Map::new();
    let number = |name: &str, text: &String| {
        text.parse::<i64>().map(Value::from).map_err(|_| format!("--{name} is {text:?}, but must be a whole number"))
    };
    for (name, given) in [("partition", &arguments.partition), ("offset", &arguments.offset)] {
        if let Some(text) = given {
            body.insert(name.to_owned(), number(name, text)?);
        }
    }
    if arguments.has_no_letter {
        body.insert("dead_letter".to_owned(), false.into());
    }
    match arguments.to.as_deref() {
        Some(end @ ("earliest" | "end")) => drop(body.insert("to".to_owned(), end.into())),
        Some(time) => {
            let time = time.parse::<i64>().map_or_else(|_| Value::from(time), Value::from);
            body.insert("time".to_owned(), time);
        }
        None => {}
    }
    Ok(HttpRequest { method: "POST", path, body: Value::Object(body).to_string() })
}

/// Sends the request and returns status and body.
fn exchange(
    mut stream: TcpStream,
    request: &HttpRequest,
    authorization: Option<&str>,
) -> std::io::Result<(u16, String)> {
    let HttpRequest { method, path, body } = request;
    let authorization = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         {authorization}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.set_read_timeout(Some(ANSWER_TIMEOUT.max(MAX_WAIT)))?;
    stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let parts = text.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parts.ok_or_else(|| std::io::Error::other("it is no HTTP/1.1 answer"))
}

/// Returns the text of a JSON value without quotes; `-` for null.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One line for the operation, and one for each partition.
fn shown_answer(answer: &Value) -> String {
    let mut text = plain(&answer["result"]);
    if !answer["error"].is_null() {
        let _ = write!(text, ": {}", plain(&answer["error"]));
    }
    text.push('\n');
    for partition in answer["partitions"].as_array().into_iter().flatten() {
        let of = |name: &str| plain(&partition[name]);
        let _ = write!(text, "partition {}: {} from={} to={}", of("partition"), of("result"), of("from"), of("to"));
        if !partition["reason"].is_null() {
            let _ = write!(text, " ({})", of("reason"));
        }
        text.push('\n');
    }
    text
}

/// One line for each module, and one for each partition.
fn shown_status(answer: &Value) -> String {
    if answer["result"] == "refused" {
        return shown_answer(answer);
    }
    let one = std::slice::from_ref(answer);
    let modules = answer["modules"].as_array().map_or(one, Vec::as_slice);
    let mut text = String::new();
    for module in modules {
        let of = |name: &str| plain(&module[name]);
        let window = &module["window"];
        let _ = writeln!(
            text,
            "module {} topic={} state={} window={}/{} not_done={}",
            of("name"),
            of("topic"),
            of("state"),
            plain(&window["in_use"]),
            plain(&window["size"]),
            plain(&window["not_done"])
        );
        for partition in module["partitions"].as_array().into_iter().flatten() {
            let of = |name: &str| plain(&partition[name]);
            let _ = write!(
                text,
                "  partition {} {} commit_point={} read_to={} not_done={}",
                of("partition"),
                of("state"),
                of("commit_point"),
                of("read_to"),
                of("not_done")
            );
            let head = &partition["head"];
            if !head.is_null() {
                let of = |name: &str| plain(&head[name]);
                let _ = write!(
                    text,
                    " head={} held_ms={} {} attempts={} last={} backend={} key={}",
                    of("offset"),
                    of("held_ms"),
                    of("state"),
                    of("attempts"),
                    of("last"),
                    of("backend"),
                    of("key")
                );
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn arguments(operation: &'static str) -> ClientArguments {
        ClientArguments { operation, module: "a+b".to_owned(), ..ClientArguments::default() }
    }

    #[test]
    fn arguments_become_a_request() {
        let seek = ClientArguments { partition: Some("3".into()), to: Some("end".into()), ..arguments("seek") };
        let request = http_request(&ClientArguments { is_dry_run: true, ..seek.clone() }).unwrap();
        assert_eq!(request.path, "/v1/modules/a%2Bb/seek?dry_run=1");
        assert_eq!((request.method, &*request.body), ("POST", r#"{"partition":3,"to":"end"}"#));
        for (to, body) in [("1700000000000", "1700000000000"), ("2026-01-31T08:00:00Z", "\"2026-01-31T08:00:00Z\"")] {
            let request = http_request(&ClientArguments { to: Some(to.into()), ..seek.clone() }).unwrap();
            assert_eq!(request.body, format!(r#"{{"partition":3,"time":{body}}}"#));
        }
        let skip = ClientArguments { offset: Some("7".into()), has_no_letter: true, ..arguments("skip") };
        assert_eq!(http_request(&skip).unwrap().body, r#"{"dead_letter":false,"offset":7}"#);
        let wrong = http_request(&ClientArguments { offset: Some("x".into()), ..seek }).unwrap_err();
        assert!(wrong.contains("--offset"), "{wrong}");
        let all = ClientArguments { operation: "status", ..ClientArguments::default() };
        assert_eq!(http_request(&all).unwrap().path, "/v1/modules");
    }

    /// Answers one request and returns what the client made of it, and the request.
    fn answered(answer: &'static str) -> (Result<String, ClientError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.ends_with(b"}") {
                let count = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..count]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        let environment = |name: &str| match name {
            "KTRANSFER_USER" => Some("ann".to_owned()),
            "KTRANSFER_PASSWORD" => Some("p:w".to_owned()),
            _ => None,
        };
        let result = run(Some(port), &arguments("pause"), environment);
        (result, server.join().unwrap())
    }

    #[test]
    fn an_answer_is_done_not_done_or_unknown() {
        let done = "HTTP/1.1 200 OK\r\n\r\n{\"result\":\"done\",\"partitions\":[{\"partition\":3,\"result\":\"done\",\
                    \"from\":7,\"to\":9}]}";
        let (result, request) = answered(done);
        assert_eq!(result, Ok("done\npartition 3: done from=7 to=9\n".to_owned()));
        assert!(request.contains("Authorization: Basic YW5uOnA6dw==\r\n"), "{request}");
        let refused = "HTTP/1.1 409 Conflict\r\n\r\n{\"result\":\"refused\",\"error\":\"not ours\"}";
        assert_eq!(answered(refused).0, Err(ClientError::NotDone("refused: not ours\n".to_owned())));
        let unknown = "HTTP/1.1 504 Gateway Timeout\r\n\r\n{\"result\":\"unknown\"}";
        assert_eq!(answered(unknown).0, Err(ClientError::Unknown("unknown\n".to_owned())));
        for garbage in ["", "HTTP/1.1 200 OK\r\n\r\nyes", "SSH-2.0\r\n\r\n{}"] {
            assert!(matches!(answered(garbage).0, Err(ClientError::Unknown(_))), "{garbage:?}");
        }
    }

    #[test]
    fn without_a_port_or_a_secret_nothing_is_sent() {
        for port in [None, Some(1)] {
            let result = run(port, &arguments("pause"), |_| None);
            assert!(matches!(result, Err(ClientError::NotDone(_))), "{port:?}: {result:?}");
        }
        let result = run(Some(1), &arguments("pause"), |_| Some("a\r\nb".to_owned()));
        assert!(matches!(result, Err(ClientError::NotDone(text)) if text.contains("one line")));
    }
}
