//! TLS connections. rustls is the server, too.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;
use rustls::version::{TLS12, TLS13};

use super::super::ConnectionErrorKind as Kind;
use super::{APIS, ECHO, Echo, connector, parts, refusal};
use crate::certificates::{Authority, Certificate};
use crate::kafka::config::{BrokerAddress, Identity, TlsConfig, TrustRoots};
use crate::kafka::test_server::tls::{TlsStream, accept, identity, server, trusting};
use crate::kafka::test_server::{PATIENCE, Peer, drain, later, soon, with_server, with_server_at};

/// An authority and a certificate for 127.0.0.1 and localhost.
struct Pki {
    folder: tempfile::TempDir,
    authority: Authority,
    own: Certificate,
}

fn pki() -> Pki {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let own = authority.issue("broker", 30);
    Pki { folder, authority, own }
}

impl Pki {
    fn server(&self) -> Arc<ServerConfig> {
        server(&self.own, &self.own, None, &[&TLS12, &TLS13])
    }

    fn trusting(&self) -> TlsConfig {
        trusting(&self.authority)
    }

    /// An authority that nobody trusts.
    fn other_authority(&self) -> Authority {
        Authority::new(self.folder.path(), "other")
    }
}

/// Serves a connection: the versions, then echoes.
fn echo(config: Arc<ServerConfig>) -> impl FnMut(TcpStream) + Send {
    move |socket| {
        let mut peer = Peer(accept(&config, socket));
        if peer.answer_versions(APIS).is_some() {
            while let Some(request) = peer.request() {
                assert_eq!((request.api_key, request.version), (ECHO, 1));
                peer.respond(&request, &request.body);
            }
        }
    }
}

#[test]
fn requests_are_encrypted_in_both_versions_of_tls_also_large_ones() {
    let pki = pki();
    for version in [&TLS12, &TLS13] {
        let config = server(&pki.own, &pki.own, None, &[version]);
        with_server(echo(config), |address| {
            let connector = connector(Some(pki.trusting()), None);
            // The second connection resumes the session of the first.
            for _ in 0..2 {
                let mut connection = connector.connect(address, later()).unwrap();
                for size in [0, 1, 100_000, 5 << 20] {
                    let body: Vec<u8> = (0..size).map(|index| index as u8).collect();
                    assert!(connection.call(&Echo(body.clone()), later()).unwrap() == body, "{size}");
                    assert!(!connection.is_closed(), "a session ticket is no close and no response");
                }
            }
        });
    }
}

#[test]
fn a_close_notify_and_bytes_that_belong_to_no_request_close_the_connection() {
    type Act = fn(&mut TlsStream);
    let acts: [Act; 3] = [
        |stream| {
            stream.conn.send_close_notify();
            stream.flush().unwrap();
            drain(&mut stream.sock);
        },
        |stream| {
            stream.write_all(b"x").unwrap();
            drain(stream);
        },
        |stream| {
            stream.sock.write_all(&[0x17, 3, 3, 0, 4, 1, 2, 3, 4]).unwrap();
            drain(&mut stream.sock);
        },
    ];
    let pki = pki();
    let config = pki.server();
    for act in acts {
        let serve = |socket: TcpStream| {
            let mut peer = Peer(accept(&config, socket));
            if peer.answer_versions(APIS).is_some() {
                act(&mut peer.0);
            }
        };
        with_server(serve, |address| {
            let mut connection = connector(Some(pki.trusting()), None).connect(address, later()).unwrap();
            let deadline = later();
            while !connection.is_closed() {
                assert!(Instant::now() < deadline, "the close is noticed");
                std::thread::yield_now();
            }
        });
    }
}

#[test]
fn new_keys_in_the_middle_of_a_connection_are_no_response() {
    let pki = pki();
    let config = pki.server();
    let serve = |socket: TcpStream| {
        let mut peer = Peer(accept(&config, socket));
        if peer.answer_versions(APIS).is_some() {
            while let Some(request) = peer.request() {
                peer.0.conn.refresh_traffic_keys().unwrap();
                peer.0.flush().unwrap();
                peer.respond(&request, &request.body);
            }
        }
    };
    with_server(serve, |address| {
        let mut connection = connector(Some(pki.trusting()), None).connect(address, later()).unwrap();
        for byte in 0..5 {
            assert_eq!(connection.call(&Echo(vec![byte]), later()).unwrap(), [byte]);
            assert!(!connection.is_closed());
        }
    });
}

#[test]
fn a_certificate_that_is_not_valid_is_refused_with_the_reason() {
    let pki = pki();
    let other = pki.other_authority();
    let expired = pki.authority.issue("expired", -1);
    let foreign = other.issue("foreign", 30);
    let (strict, mut no_name, mut nothing) = (pki.trusting(), pki.trusting(), pki.trusting());
    no_name.verify_host_name = false;
    nothing.verify_certificate = false;
    let config = |certificate, key| server(certificate, key, None, &[&TLS12, &TLS13]);
    let (own, wrong_key) = (pki.server(), config(&pki.own, &foreign));
    let (expired, foreign) = (config(&expired, &expired), config(&foreign, &foreign));
    // The certificates are for 127.0.0.1 and localhost.
    type Row<'a> = (&'a Arc<ServerConfig>, &'a TlsConfig, &'a str, Result<(), &'a str>);
    let rows: &[Row] = &[
        (&own, &strict, "127.0.0.1", Ok(())),
        (&own, &strict, "localhost", Ok(())),
        (&own, &strict, "127.0.0.2", Err("the server's certificate is for another host name: ")),
        (&own, &no_name, "127.0.0.2", Ok(())),
        (&own, &nothing, "127.0.0.2", Ok(())),
        (&foreign, &strict, "127.0.0.1", Err("was not issued by a trusted certificate authority")),
        (&foreign, &no_name, "127.0.0.1", Err("was not issued by a trusted certificate authority")),
        (&foreign, &nothing, "127.0.0.1", Ok(())),
        (&expired, &strict, "127.0.0.1", Err("the server's certificate has expired: ")),
        (&expired, &no_name, "127.0.0.1", Err("the server's certificate has expired: ")),
        (&expired, &nothing, "127.0.0.1", Ok(())),
        // The peer has not the key of the certificate.
        (&wrong_key, &strict, "127.0.0.1", Err("TLS failed: ")),
        (&wrong_key, &nothing, "127.0.0.1", Err("TLS failed: ")),
    ];
    for (index, (config, settings, host, expected)) in rows.iter().enumerate() {
        let ip = if *host == "localhost" { "127.0.0.1" } else { host };
        with_server_at(ip, echo(Arc::clone(config)), |server| {
            let address = BrokerAddress { host: (*host).into(), port: server.port };
            let connector = connector(Some((*settings).clone()), None);
            match (connector.connect(&address, later()), expected) {
                (Ok(_), Ok(())) => {}
                (Err(error), Err(text)) => {
                    let (kind, reason) = parts(&error, &address);
                    assert!(kind == Kind::NotSent && reason.starts_with("TLS failed: "), "{index}: {reason}");
                    assert!(reason.contains(text), "{index}: {reason}");
                }
                (outcome, _) => panic!("{index}: {:?}", outcome.err()),
            }
        });
    }
}

/// Makes a self-signed certificate that is marked as an authority, valid for `days` (below 0: expired).
fn self_signed(folder: &Path, name: &str, days: i32) -> Certificate {
    fs::write(folder.join("extensions"), "basicConstraints=CA:TRUE\nsubjectAltName=IP:127.0.0.1\n").unwrap();
    let openssl = |arguments: String| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let new = "req -new -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=broker";
    openssl(format!("{new} -out {name}.request -keyout {name}.key"));
    let sign = format!("x509 -req -in {name}.request -signkey {name}.key -extfile extensions");
    openssl(format!("{sign} -days {days} -out {name}.pem"));
    Certificate { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) }
}

#[test]
fn a_self_signed_certificate_is_accepted_if_it_is_in_the_ca_file_and_valid() {
    let folder = tempfile::tempdir().unwrap();
    let made = |name, days| self_signed(folder.path(), name, days);
    let (own, other, old) = (made("own", 30), made("other", 30), made("old", -1));
    let rows = [
        (&own, &own, "127.0.0.1", None),
        (&own, &other, "127.0.0.1", Some("was not issued by a trusted certificate authority")),
        (&own, &own, "127.0.0.2", Some("is for another host name")),
        (&old, &old, "127.0.0.1", Some("has expired")),
    ];
    for (broker, trusted, host, expected) in rows {
        let config = server(broker, broker, None, &[&TLS13]);
        let roots = TrustRoots::Pem(fs::read(&trusted.certificate).unwrap());
        let settings = TlsConfig { roots, identity: None, verify_certificate: true, verify_host_name: true };
        with_server_at(host, echo(config), |address| {
            let connector = connector(Some(settings), None);
            match expected {
                None => drop(connector.connect(address, later()).unwrap()),
                Some(text) => {
                    let (_, reason) = refusal(&connector, address, false);
                    assert!(reason.contains(text), "{reason}");
                }
            }
        });
    }
}

#[test]
fn a_client_certificate_is_sent_and_its_lack_or_refusal_is_named() {
    let pki = pki();
    let other = pki.other_authority();
    let (good, foreign) = (identity(&pki.authority.issue("client", 30)), identity(&other.issue("foreign", 30)));
    let rows: [(Option<&Identity>, Option<&str>); 3] = [
        (Some(&good), None),
        (None, Some("the server requires a client certificate, and none is configured: it ")),
        (Some(&foreign), Some("the server refused the client certificate: it sent the TLS alert ")),
    ];
    for version in [&TLS12, &TLS13] {
        for (identity, expected) in rows {
            let config = server(&pki.own, &pki.own, Some(&pki.authority), &[version]);
            with_server(echo(config), |address| {
                let connector = connector(Some(TlsConfig { identity: identity.cloned(), ..pki.trusting() }), None);
                match expected {
                    None => drop(connector.connect(address, later()).unwrap()),
                    Some(text) => {
                        let (kind, reason) = refusal(&connector, address, false);
                        assert!(kind == Kind::Denied && reason.contains(text), "{version:?}: {kind:?} {reason}");
                    }
                }
            });
        }
    }
}

#[test]
fn a_peer_that_does_not_complete_the_handshake_is_named() {
    let pki = pki();
    let config = pki.server();
    type Serve = Box<dyn FnMut(TcpStream) + Send>;
    let answers = |bytes: &'static [u8]| -> Serve {
        Box::new(move |mut socket: TcpStream| {
            socket.read_exact(&mut [0; 5]).unwrap();
            socket.write_all(bytes).unwrap();
            drain(&mut socket);
        })
    };
    let first_records = move |mut socket: TcpStream| {
        let mut server = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        while !server.wants_write() {
            server.read_tls(&mut socket).unwrap();
            server.process_new_packets().unwrap();
        }
        let mut records = Vec::new();
        server.write_tls(&mut records).unwrap();
        socket.write_all(&records[..records.len() / 2]).unwrap();
    };
    let rows: Vec<(Serve, bool, &str)> = vec![
        (answers(b"HTTP/1.1 400 Bad"), false, "does not speak TLS on this port; it sent \"HTTP/1.1 400 Bad\""),
        (answers(&[0, 0, 0, 6, 0, 0, 0, 1, 0, 35]), false, "does not speak TLS on this port; it sent \"\\x00"),
        (answers(&[0x15, 3, 3, 0, 2, 2, 40]), false, "supports no TLS version or cipher suite of this client"),
        (answers(&[0x15, 3, 3, 0, 2, 2, 80]), false, "it sent the TLS alert InternalError"),
        (answers(&[0x16, 3, 3, 0xff, 0xff, 1]), false, "TLS error: "),
        (answers(&[0x16, 3, 3, 0, 4, 2, 0xff, 0xff, 0xff]), false, "TLS error: "),
        (answers(b""), true, "timed out"),
        (answers(&[0x16, 3, 3, 0, 100, 2]), true, "timed out"),
        (Box::new(drop), false, "as a listener without TLS does"),
        (Box::new(first_records), false, "closed the connection in the TLS handshake"),
    ];
    for (serve, silent, text) in rows {
        with_server(serve, |address| {
            let started = Instant::now();
            let (kind, reason) = refusal(&connector(Some(pki.trusting()), None), address, silent);
            assert!(kind == Kind::NotSent && reason.starts_with("TLS failed: "), "{text}: {kind:?} {reason}");
            assert!(reason.contains(text), "{text}: {reason}");
            assert!(started.elapsed() < PATIENCE / 2);
        });
    }
}

#[test]
fn a_large_request_that_is_not_read_is_not_reported_as_unsent() {
    let pki = pki();
    let config = pki.server();
    let gate = crate::shutdown::Stop::new();
    let open = gate.clone();
    let serve = move |socket: TcpStream| {
        let mut peer = Peer(accept(&config, socket));
        if peer.answer_versions(APIS).is_some() {
            gate.wait();
        }
    };
    with_server(serve, |address| {
        let mut connection = connector(Some(pki.trusting()), None).connect(address, later()).unwrap();
        let error = connection.send(&Echo(vec![0; 60 << 20]), soon()).unwrap_err();
        assert_eq!(error.kind, Kind::TimedOut);
        open.trigger();
    });
}

#[test]
fn settings_that_cannot_be_used_are_named_without_content() {
    let pki = pki();
    let good = identity(&pki.own);
    let key_text = String::from_utf8(good.key_pem.clone()).unwrap();
    let secret = key_text.lines().nth(1).unwrap();
    let with_roots = |pem: &[u8]| TlsConfig { roots: TrustRoots::Pem(pem.to_vec()), ..pki.trusting() };
    let with_identity = |certificate: &[u8], key: &[u8]| TlsConfig {
        identity: Some(Identity { certificates_pem: certificate.to_vec(), key_pem: key.to_vec() }),
        ..pki.trusting()
    };
    let other_key = fs::read(&pki.authority.own.key).unwrap();
    let rows = [
        (with_roots(b""), "the CA file contains no certificate"),
        (with_roots(key_text.as_bytes()), "the CA file contains no certificate"),
        (with_roots(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "that cannot be used"),
        (with_roots(b"-----BEGIN CERTIFICATE-----\nAAAA\n"), "a section has no end"),
        (with_identity(b"", &good.key_pem), "the client certificate contains no certificate"),
        (with_identity(&good.certificates_pem, b""), "the client key contains no private key"),
        (with_identity(&good.certificates_pem, key_text.replace(secret, "*").as_bytes()), "is not base64"),
        (with_identity(&good.certificates_pem, &other_key), "is not that of the client certificate"),
    ];
    for (settings, text) in rows {
        let connector = connector(Some(settings), None);
        let reason = connector.check().unwrap_err();
        assert!(reason.contains(text) && !reason.contains(secret), "{text}: {reason}");
        let address = BrokerAddress { host: "127.0.0.1".into(), port: 1 };
        assert_eq!(refusal(&connector, &address, false), (Kind::Denied, reason));
    }
    assert_eq!(connector(Some(with_identity(&good.certificates_pem, &good.key_pem)), None).check(), Ok(()));
}
