//! Texts for TLS errors: they say which side refused what.

use rustls::{AlertDescription, CertificateError, Error};

use super::TlsFailure;

/// Explains an error. `lacks_certificate`: the server demanded a client certificate, and none is configured.
pub(super) fn explain(cause: &Error, lacks_certificate: bool) -> TlsFailure {
    match cause {
        Error::AlertReceived(alert) => refused(*alert, lacks_certificate),
        Error::InvalidCertificate(problem) => {
            TlsFailure { reason: format!("the server's certificate {}", certificate(problem)), is_refusal: false }
        }
        other => TlsFailure { reason: format!("TLS error: {other}"), is_refusal: false },
    }
}

/// Explains that the server ended the connection because it got no client certificate. `how`: how it ended it.
pub(super) fn client_certificate_missing(how: &str) -> TlsFailure {
    let reason = format!("the server requires a client certificate, and none is configured: {how}");
    TlsFailure { reason, is_refusal: true }
}

fn certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!("has expired: {problem}"),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("is not valid yet: {problem}")
        }
        CertificateError::UnknownIssuer => {
            "was not issued by a trusted certificate authority: UnknownIssuer".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("is for another host name: {problem}")
        }
        other => format!("is not accepted: {other}"),
    }
}

fn refused(alert: AlertDescription, lacks_certificate: bool) -> TlsFailure {
    use AlertDescription as Alert;
    let shown = format!("it sent the TLS alert {alert:?}");
    let is_about_certificate = matches!(
        alert,
        Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
    );
    match alert {
        // Java brokers answer a missing certificate with BadCertificate or HandshakeFailure in TLS 1.2.
        _ if lacks_certificate => client_certificate_missing(&shown),
        _ if is_about_certificate => {
            let reason = format!("the server refused the client certificate: {shown}");
            TlsFailure { reason, is_refusal: true }
        }
        Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity => {
            let reason = format!(
                "the server supports no TLS version or cipher suite of this client (TLS 1.2 and 1.3 with forward \
                 secrecy): {shown}"
            );
            TlsFailure { reason, is_refusal: false }
        }
        _ => TlsFailure { reason: format!("the server ended the TLS connection: {shown}"), is_refusal: false },
    }
}
