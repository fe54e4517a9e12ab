//! Authentication.

use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Instant;

use super::super::ConnectionErrorKind as Kind;
use super::{APIS, ECHO, Echo, connector, parts, refusal};
use crate::kafka::config::{OidcConfig, SaslConfig, ScramHash, TokenSource, TrustRoots};
use crate::kafka::test_server::{Peer, Received, answer_http, drain, later, read_http, with_server};

fn plain() -> Option<SaslConfig> {
    Some(SaslConfig::Plain { username: "user".into(), password: "secret".into() })
}

/// Reads SaslHandshake and answers with an error code and the mechanisms of the listener.
fn answer_handshake(peer: &mut Peer<TcpStream>, version: i16, code: u8) -> Option<()> {
    let request = peer.request()?;
    assert_eq!((request.api_key, request.version), (17, version));
    assert_eq!(request.body, b"\0\x05PLAIN");
    peer.respond(&request, &[&[0, code][..], b"\0\0\0\x02\0\x01A\0\x01B"].concat());
    Some(())
}

/// Reads SaslAuthenticate and answers with an error code and a session lifetime.
fn answer_authenticate(peer: &mut Peer<TcpStream>, code: u8, lifetime_ms: i64) -> Option<()> {
    let request = peer.request()?;
    assert_eq!((request.api_key, request.version, &request.body[4..]), (36, 1, &b"\0user\0secret"[..]));
    let text = if code == 0 { &[0xff, 0xff][..] } else { b"\0\x05wrong" };
    peer.respond(&request, &[&[0, code][..], text, &[0, 0, 0, 0], &lifetime_ms.to_be_bytes()].concat());
    Some(())
}

fn echo(peer: &mut Peer<TcpStream>) -> Option<()> {
    let request = peer.request()?;
    assert_eq!(request.api_key, ECHO);
    peer.respond(&request, &request.body);
    Some(())
}

/// Runs the steps of a connection until one finds that the client has closed it.
fn steps(serve: impl Fn(&mut Peer<TcpStream>) -> Option<()> + Send) -> impl FnMut(TcpStream) + Send {
    move |socket| {
        let mut peer = Peer(socket);
        if peer.answer_versions(APIS).and_then(|()| serve(&mut peer)).is_some() {
            drain(&mut peer.0);
        }
    }
}

#[test]
fn a_session_is_renewed_before_its_end_and_before_the_next_request() {
    let serve = steps(|peer| {
        answer_handshake(peer, 1, 0)?;
        answer_authenticate(peer, 0, 1)?;
        answer_handshake(peer, 1, 0)?;
        answer_authenticate(peer, 0, 3_600_000)?;
        echo(peer)?;
        echo(peer)
    });
    with_server(serve, |address| {
        let mut connection = connector(None, plain()).connect(address, later()).unwrap();
        // Most of the millisecond has passed.
        while connection.renewal().unwrap() > Instant::now() {
            std::thread::yield_now();
        }
        for body in [b"a", b"b"] {
            assert_eq!(connection.call(&Echo(body.to_vec()), later()).unwrap(), body);
        }
        let minutes = (connection.renewal().unwrap() - Instant::now()).as_secs() / 60;
        assert!((47..54).contains(&minutes), "80 to 90 % of an hour: {minutes}");
    });
}

#[test]
fn a_session_without_limit_is_not_renewed() {
    let serve = steps(|peer| {
        answer_handshake(peer, 1, 0)?;
        answer_authenticate(peer, 0, 0)?;
        echo(peer)
    });
    with_server(serve, |address| {
        let mut connection = connector(None, plain()).connect(address, later()).unwrap();
        assert_eq!(connection.renewal(), None);
        assert_eq!(connection.call(&Echo(b"a".to_vec()), later()).unwrap(), b"a");
    });
}

#[test]
fn a_refused_renewal_is_a_denial_and_the_request_is_not_sent() {
    let serve = steps(|peer| {
        answer_handshake(peer, 1, 0)?;
        answer_authenticate(peer, 0, 1)?;
        answer_handshake(peer, 1, 0)?;
        answer_authenticate(peer, 58, 0)?;
        assert!(peer.request().is_none());
        None
    });
    with_server(serve, |address| {
        let mut connection = connector(None, plain()).connect(address, later()).unwrap();
        while connection.renewal().unwrap() > Instant::now() {
            std::thread::yield_now();
        }
        let error = connection.call(&Echo(vec![]), later()).unwrap_err();
        let (kind, reason) = parts(&error, address);
        let expected = "re-authentication failed: SASL PLAIN: the broker refused the credentials: \"wrong\"";
        assert_eq!((kind, &*reason), (Kind::Denied, expected));
        assert!(connection.is_closed());
    });
}

#[test]
fn each_refusal_is_named_without_the_password() {
    type Serve = fn(&mut Peer<TcpStream>) -> Option<()>;
    let rows: [(Serve, Kind, &str); 6] = [
        (
            |peer| answer_handshake(peer, 1, 33),
            Kind::Denied,
            "the listener has other mechanisms (sasl.mechanisms): A, B",
        ),
        (|peer| answer_handshake(peer, 1, 34), Kind::Denied, "the listener has no SASL"),
        (|peer| answer_handshake(peer, 1, 7), Kind::NotSent, "SaslHandshake returned error code 7"),
        (
            |peer| answer_handshake(peer, 1, 0).and_then(|()| answer_authenticate(peer, 58, 0)),
            Kind::Denied,
            "the broker refused the credentials: \"wrong\"",
        ),
        (
            |peer| answer_handshake(peer, 1, 0).and_then(|()| answer_authenticate(peer, 7, 0)),
            Kind::NotSent,
            "SaslAuthenticate returned error code 7: \"wrong\"",
        ),
        (
            |peer| answer_handshake(peer, 1, 0).and_then(|()| peer.request()).and(None),
            Kind::NotSent,
            "the server closed the connection",
        ),
    ];
    for (serve, kind, text) in rows {
        with_server(steps(serve), |address| {
            let (found, reason) = refusal(&connector(None, plain()), address, false);
            assert!(found == kind && reason.contains(text) && !reason.contains("secret"), "{text}: {reason}");
            assert!(reason.starts_with("authentication failed: SASL PLAIN: "), "{reason}");
        });
    }
}

#[test]
fn a_broker_without_sasl_authenticate_gets_messages_without_headers() {
    const OLD_APIS: &[(i16, i16, i16)] = &[(18, 0, 0), (17, 0, 0), (ECHO, 0, 1)];
    for accepts in [true, false] {
        let serve = move |socket: TcpStream| {
            let mut peer = Peer(socket);
            let mut serve = || {
                peer.answer_versions(OLD_APIS)?;
                answer_handshake(&mut peer, 0, 0)?;
                assert_eq!(peer.frame()?, b"\0user\0secret");
                if accepts {
                    peer.send_frame(b"");
                    echo(&mut peer)?;
                }
                Some(())
            };
            serve();
        };
        with_server(serve, |address| match accepts {
            true => {
                let mut connection = connector(None, plain()).connect(address, later()).unwrap();
                assert_eq!(connection.call(&Echo(vec![5]), later()).unwrap(), [5]);
            }
            false => {
                let (kind, reason) = refusal(&connector(None, plain()), address, false);
                assert!(kind == Kind::Denied && reason.contains("refused the credentials"), "{reason}");
            }
        });
    }
}

#[test]
fn a_broker_without_sasl_is_named() {
    let serve = |socket: TcpStream| {
        let mut peer = Peer(socket);
        if peer.answer_versions(&[(ECHO, 0, 1)]).is_some() {
            drain(&mut peer.0);
        }
    };
    with_server(serve, |address| {
        let (kind, reason) = refusal(&connector(None, plain()), address, false);
        assert!(kind == Kind::Denied && reason.contains("does not support SASL"), "{reason}");
    });
}

#[test]
fn scram_fails_if_the_broker_does_not_prove_that_it_knows_the_user() {
    let nonces = Mutex::new(Vec::new());
    let serve = steps(|peer| {
        let handshake = peer.request()?;
        assert_eq!(handshake.body, b"\0\x0dSCRAM-SHA-256");
        peer.respond(&handshake, &[0, 0, 0, 0, 0, 0]);
        let answer = |peer: &mut Peer<TcpStream>, request: &Received, message: &str| {
            let length = (message.len() as i32).to_be_bytes();
            peer.respond(request, &[&[0, 0, 0xff, 0xff][..], &length, message.as_bytes(), &[0; 8]].concat());
        };
        let request = peer.request()?;
        let first = String::from_utf8(request.body[4..].to_vec()).unwrap();
        let nonce = first.strip_prefix("n,,n=user,r=").unwrap().to_owned();
        answer(peer, &request, &format!("r={nonce}more,s=c2FsdA==,i=4096"));
        nonces.lock().unwrap().push(nonce);
        let request = peer.request()?;
        answer(peer, &request, "v=AAAA");
        Some(())
    });
    let sasl = SaslConfig::Scram { hash: ScramHash::Sha256, username: "user".into(), password: "secret".into() };
    with_server(serve, |address| {
        let connector = connector(None, Some(sasl));
        for _ in 0..2 {
            let (kind, reason) = refusal(&connector, address, false);
            assert!(kind == Kind::Denied && reason.contains("SCRAM signature is wrong"), "{reason}");
        }
    });
    let nonces = nonces.into_inner().unwrap();
    assert!(nonces[0] != nonces[1] && nonces.iter().all(|nonce| nonce.len() == 24), "{nonces:?}");
}

#[test]
fn credentials_that_cannot_be_used_are_found_before_a_connection() {
    let oidc = |token_url: &str| {
        let (client_id, client_secret) = ("id".to_owned(), "secret".to_owned());
        let (scope, extensions, roots) = (None, Vec::new(), TrustRoots::System);
        let token_url = token_url.to_owned();
        let config = OidcConfig { token_url, client_id, client_secret, scope, extensions, roots };
        SaslConfig::OauthBearer(TokenSource::Oidc(config))
    };
    let rows = [
        (SaslConfig::Plain { username: String::new(), password: "secret".into() }, "sasl.username is empty"),
        (oidc("no url"), "is not a URL"),
        (oidc("/token"), "has no host"),
        (oidc("http://me:secret@host/token"), "credentials in it"),
        (oidc("ftp://host/token"), "neither an http nor an https URL"),
    ];
    for (sasl, text) in rows {
        let connector = connector(None, Some(sasl));
        let reason = connector.check().unwrap_err();
        assert!(reason.contains(text) && !reason.contains("secret"), "{reason}");
        let address = crate::kafka::config::BrokerAddress { host: "127.0.0.1".into(), port: 1 };
        assert_eq!(refusal(&connector, &address, false), (Kind::Denied, reason));
    }
}

#[test]
fn oauth_bearer_gets_a_token_once_and_names_the_reason_of_a_refusal() {
    let endpoint_requests = Mutex::new(0);
    let endpoint = |mut socket: TcpStream| {
        *endpoint_requests.lock().unwrap() += 1;
        read_http(&mut socket);
        answer_http(&mut socket, "200 OK", r#"{"access_token":"tok","expires_in":3600}"#);
    };
    let broker = steps(|peer| {
        let handshake = peer.request()?;
        assert_eq!(handshake.body, b"\0\x0bOAUTHBEARER");
        peer.respond(&handshake, &[0, 0, 0, 0, 0, 0]);
        let request = peer.request()?;
        assert_eq!(&request.body[4..], b"n,,\x01auth=Bearer tok\x01\x01");
        peer.respond(&request, b"\0\0\xff\xff\0\0\0\x07{\"s\":1}\0\0\0\0\0\0\0\0");
        let request = peer.request()?;
        assert_eq!(&request.body[4..], b"\x01");
        peer.respond(&request, &[&[0, 58][..], b"\0\x05wrong", &[0; 12]].concat());
        Some(())
    });
    with_server(endpoint, |endpoint| {
        let config = OidcConfig {
            token_url: format!("http://{endpoint}/token"),
            client_id: "id".into(),
            client_secret: "secret".into(),
            scope: None,
            extensions: Vec::new(),
            roots: TrustRoots::System,
        };
        let connector = connector(None, Some(SaslConfig::OauthBearer(TokenSource::Oidc(config))));
        with_server(broker, |address| {
            for _ in 0..2 {
                let (kind, reason) = refusal(&connector, address, false);
                let text = "the broker refused the credentials: \"wrong\": {\"s\":1}";
                assert!(kind == Kind::Denied && reason.contains(text), "{reason}");
            }
        });
    });
    assert_eq!(endpoint_requests.into_inner().unwrap(), 1);
}
