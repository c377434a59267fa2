//! Who a peer may be, and how to say that it is not.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, Error, InvalidMessage,
    RootCertStore, SignatureScheme,
};

/// Verifies a director as rustls does, but compares its name only with one that is known: without
/// one the link is made to an address, which no certificate has to carry.
#[derive(Debug)]
pub(super) struct DirectorVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for DirectorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if let ServerName::DnsName(_) = name {
            verify_server_name(&certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The first name that a certificate carries. The CA vouches for each of them.
pub(super) fn name_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    parsed.valid_dns_names().next().map(str::to_owned)
}

/// What ended a link, in the words of an operator, with what to do.
pub(super) fn explained(error: &Error) -> io::Error {
    let text = match error {
        Error::InvalidCertificate(error) => certificate_text(error),
        Error::NoCertificatesPresented => {
            "peer shows no certificate; give it one of this CA".to_owned()
        }
        Error::AlertReceived(alert) => alert_text(*alert),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => "peer does not speak TLS; write tls: at both ends, or tcp: at both".to_owned(),
        Error::PeerIncompatible(why) => {
            format!("peer does not speak TLS 1.3 as we do ({why:?}); update it")
        }
        error => format!("TLS: {error}"),
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn certificate_text(error: &CertificateError) -> String {
    // Roughly: the text stays the same from one attempt to the next.
    let apart = |later: UnixTime, earlier: UnixTime| {
        let seconds = later.as_secs().saturating_sub(earlier.as_secs());
        let units = [(86_400, "days"), (3600, "hours"), (60, "minutes")];
        let unit = units.into_iter().find(|(unit, _)| seconds >= 2 * unit);
        let (unit, name) = unit.unwrap_or((60, "minutes"));
        format!("{} {name}", seconds / unit)
    };
    match error {
        CertificateError::Expired => {
            "peer's certificate has expired; issue it again, or correct the clocks".to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "peer's certificate has expired {} ago; issue it again, or correct the clocks",
            apart(*time, *not_after)
        ),
        CertificateError::NotValidYet => {
            "peer's certificate is not valid yet; correct the clocks".to_owned()
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "peer's certificate is not valid for another {}; correct the clocks",
            apart(*not_before, *time)
        ),
        // A CA of the same name as ours would have signed with another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "peer's certificate is of another CA; issue it with this one, or add that CA".to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "peer's certificate is for {}, not for {}; correct the director's name or its address",
            presented
                .iter()
                // They come as `DnsName("host1")`.
                .map(|name| name.trim_start_matches("DnsName(\"").trim_end_matches("\")"))
                .collect::<Vec<_>>()
                .join(", "),
            expected.to_str()
        ),
        error => format!("peer's certificate is refused: {error}; issue it again"),
    }
}

/// What the peer had against us.
fn alert_text(alert: AlertDescription) -> String {
    let reason = match alert {
        AlertDescription::CertificateExpired => {
            "our certificate has expired or is not valid yet there; issue it again, or correct \
             the clocks"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "our certificate is of another CA; issue it with the peer's"
        }
        AlertDescription::CertificateRequired => "it wants a certificate; give us one of its CA",
        AlertDescription::BadCertificate => {
            "our certificate is not for the name it expects; correct the name or the address"
        }
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3; update it",
        alert => return format!("peer ended the link with TLS alert {alert:?}; see its log"),
    };
    format!("peer refused us: {reason}")
}
