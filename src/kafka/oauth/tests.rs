//! Tests of the token cache against endpoints in this process.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;
use crate::kafka::config::{BrokerAddress, TrustRoots};
use crate::kafka::test_server::{PATIENCE, answer_http, drain, later, read_http, soon, with_server};

fn config(token_url: String) -> OidcConfig {
    OidcConfig {
        token_url,
        client_id: "my id".into(),
        client_secret: "s3cret/+=".into(),
        scope: Some("a b&c".into()),
        extensions: vec![("logicalCluster".into(), "x".into())],
        roots: TrustRoots::System,
    }
}

fn cache(address: &BrokerAddress) -> Arc<TokenCache> {
    Arc::new(TokenCache::new(config(format!("http://{address}/oauth/token?x=1")), Resolver::new()).unwrap())
}

/// Waits until no request is in progress.
fn wait_for_request(cache: &TokenCache) {
    let mut state = lock(&cache.state);
    while state.is_requesting {
        state = wait_timeout(&cache.changed, state, PATIENCE);
    }
}

fn token(cache: &Arc<TokenCache>) -> Result<String, TokenFailure> {
    cache.token(later(), &Disconnect::new())
}

/// Serves each connection with one response; counts the connections.
fn answers<'a>(count: &'a AtomicUsize, status: &'a str, body: &'a str) -> impl FnMut(TcpStream) + Send + 'a {
    move |mut socket| {
        count.fetch_add(1, Ordering::SeqCst);
        read_http(&mut socket);
        answer_http(&mut socket, status, body);
    }
}

const GOOD: &str = r#"{"access_token":"tok","token_type":"Bearer","expires_in":3600}"#;

#[test]
fn the_request_is_that_of_the_client_credentials_grant() {
    let serve = |mut socket: TcpStream| {
        let (head, body) = read_http(&mut socket);
        assert!(head.starts_with("POST /oauth/token?x=1 HTTP/1.1\r\n"), "{head}");
        let credentials = STANDARD.encode("my id:s3cret/+=");
        let lower = head.to_ascii_lowercase();
        assert!(head.contains(&format!("Basic {credentials}\r\n")), "{head}");
        assert!(lower.contains("content-type: application/x-www-form-urlencoded\r\n"), "{head}");
        assert_eq!(body, "grant_type=client_credentials&scope=a+b%26c");
        answer_http(&mut socket, "200 OK", GOOD);
    };
    with_server(serve, |address| {
        let cache = cache(address);
        assert_eq!(token(&cache).unwrap(), "tok");
        assert_eq!(cache.extensions(), [("logicalCluster".to_owned(), "x".to_owned())]);
    });
}

#[test]
fn callers_share_one_request_and_one_token() {
    let count = AtomicUsize::new(0);
    with_server(answers(&count, "200 OK", GOOD), |address| {
        let cache = cache(address);
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..8).map(|_| scope.spawn(|| token(&cache).unwrap())).collect();
            assert!(callers.into_iter().all(|caller| caller.join().unwrap() == "tok"));
        });
        assert_eq!(token(&cache).unwrap(), "tok");
    });
    assert_eq!(count.into_inner(), 1);
}

#[test]
fn a_token_is_replaced_in_time_and_kept_if_that_fails() {
    let count = AtomicUsize::new(0);
    let serve = |mut socket: TcpStream| {
        read_http(&mut socket);
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => answer_http(&mut socket, "200 OK", GOOD),
            1 => answer_http(&mut socket, "500 Oops", ""),
            _ => answer_http(&mut socket, "200 OK", &GOOD.replace("\"tok\"", "\"new\"")),
        }
    };
    with_server(serve, |address| {
        let cache = cache(address);
        let change = |change: &dyn Fn(&mut State)| change(&mut lock(&cache.state));
        assert_eq!(token(&cache).unwrap(), "tok");
        let left = lock(&cache.state).token.as_ref().unwrap().refresh_at - Instant::now();
        assert!((Duration::from_secs(2600)..=Duration::from_secs(2700)).contains(&left), "75 % of an hour: {left:?}");
        // It is time to replace the token, which fails; it has not expired.
        change(&|state| state.token.as_mut().unwrap().refresh_at = Instant::now());
        assert_eq!(token(&cache).unwrap(), "tok");
        wait_for_request(&cache);
        assert_eq!(token(&cache).unwrap(), "tok", "the failure is not repeated at once");
        assert_eq!(count.load(Ordering::SeqCst), 2);
        change(&|state| state.failure = None);
        token(&cache).unwrap();
        wait_for_request(&cache);
        assert_eq!(token(&cache).unwrap(), "new");
        // An expired token is not used.
        change(&|state| {
            let token = state.token.as_mut().unwrap();
            (token.value, token.refresh_at, token.expires_at) = ("old".into(), Instant::now(), Instant::now());
        });
        assert_eq!(token(&cache).unwrap(), "new");
        assert_eq!(count.load(Ordering::SeqCst), 4);
    });
}

#[test]
fn each_failure_names_the_endpoint_and_no_secret() {
    let long = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(300_000));
    let rows = [
        (
            "401 Unauthorized",
            r#"{"error":"invalid_client","error_description":"not s3cret/+="}"#,
            true,
            "status 401: invalid_client (not ***)",
        ),
        ("400 Bad Request", r#"{"error":"invalid_scope"}"#, true, "status 400: invalid_scope"),
        ("503 Busy", "<html>", false, "status 503"),
        ("302 Found", "", false, "status 302"),
        ("200 OK", "<html>", false, "not the JSON object of RFC 6749"),
        ("200 OK", &long, false, "the response cannot be read"),
        ("nonsense", "", false, ""),
    ];
    for (status, body, is_refusal, text) in rows {
        let count = AtomicUsize::new(0);
        with_server(answers(&count, status, body), |address| {
            let failure = token(&cache(address)).unwrap_err();
            let prefix = format!("cannot get an access token from http://{address}/oauth/token?x=1: ");
            assert!(failure.reason.starts_with(&prefix) && failure.reason.contains(text), "{}", failure.reason);
            assert!(!failure.reason.contains("s3cret"), "{}", failure.reason);
            assert_eq!(failure.is_refusal, is_refusal, "{status}");
        });
    }
}

#[test]
fn an_endpoint_that_is_silent_or_slow_costs_the_time_until_the_deadline() {
    for answer in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{"] {
        let serve = |mut socket: TcpStream| {
            read_http(&mut socket);
            socket.write_all(answer).unwrap();
            drain(&mut socket);
        };
        with_server(serve, |address| {
            let started = Instant::now();
            let failure = cache(address).token(soon(), &Disconnect::new()).unwrap_err();
            assert!(failure.reason.contains("time"), "{}", failure.reason);
            assert!(started.elapsed() < PATIENCE / 2);
        });
    }
}

#[test]
fn a_silent_endpoint_does_not_delay_a_caller_while_the_token_is_valid() {
    let (count, mut silent) = (AtomicUsize::new(0), Vec::new());
    let serve = |mut socket: TcpStream| {
        read_http(&mut socket);
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => answer_http(&mut socket, "200 OK", GOOD),
            _ => silent.push(socket),
        }
    };
    with_server(serve, |address| {
        let cache = cache(address);
        assert_eq!(token(&cache).unwrap(), "tok");
        lock(&cache.state).token.as_mut().unwrap().refresh_at = Instant::now();
        // The first call requests a new token; the others find that request in progress.
        for _ in 0..3 {
            assert_eq!(token(&cache).unwrap(), "tok");
            assert!(lock(&cache.state).is_requesting, "the calls do not wait for the response");
        }
    });
}

#[test]
fn a_disconnect_ends_the_request_and_a_waiting_caller_keeps_its_deadline() {
    let serve = |mut socket: TcpStream| drain(&mut socket);
    with_server(serve, |address| {
        let (cache, disconnect) = (cache(address), Disconnect::new());
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| cache.token(later(), &disconnect).unwrap_err());
            while !lock(&cache.state).is_requesting {
                std::thread::yield_now();
            }
            let waiting = cache.token(soon(), &Disconnect::new()).unwrap_err();
            assert!(waiting.reason.contains("another thread"), "{}", waiting.reason);
            disconnect.disconnect();
            caller.join().unwrap();
        });
    });
}

#[cfg(feature = "tls")]
#[test]
fn an_https_endpoint_is_verified() {
    use crate::certificates::Authority;
    use crate::kafka::test_server::tls::{accept, server};
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(folder.path(), "authority"), Authority::new(folder.path(), "other"));
    let own = authority.issue("endpoint", 30);
    let tls = server(&own, &own, None, &[&rustls::version::TLS13]);
    for (trusted, expected) in [(&authority, Ok("tok")), (&other, Err("not issued by a trusted"))] {
        let serve = |socket: TcpStream| {
            let mut stream = accept(&tls, socket);
            if stream.conn.complete_io(&mut stream.sock).is_ok() && !stream.conn.is_handshaking() {
                read_http(&mut stream);
                answer_http(&mut stream, "200 OK", GOOD);
                drain(&mut stream);
            }
        };
        with_server(serve, |address| {
            let roots = TrustRoots::Pem(std::fs::read(&trusted.own.certificate).unwrap());
            let config = OidcConfig { roots, ..config(format!("https://localhost:{}/token", address.port)) };
            let cache = Arc::new(TokenCache::new(config, Resolver::new()).unwrap());
            match (token(&cache), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(failure), Err(text)) => {
                    assert!(failure.reason.contains(text) && failure.reason.contains("https://localhost:"));
                }
                (outcome, _) => panic!("{outcome:?}"),
            }
        });
    }
}
