//! Who may connect, and how the wire reads credentials.
//!
//! The policy is an [`Authenticator`], which the server implements; this module only knows the three places where Flight clients put
//! credentials: the `authorization` header (`Basic` or `Bearer`), the `auth-token-bin` header of old Java and C++ clients, and the
//! payload of the handshake.
//!
//! # Invariants
//! - AUTH-1 `Basic` credentials are read with and without base64 padding, and the password may contain colons.
//!   Test: `basic_credentials_of_every_client`.
//! - AUTH-2 a refusal never says whether the user or the password was wrong. Test: `tests::wrong_passwords_are_refused`.

use std::fmt;

use async_trait::async_trait;
use base::Principal;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use tonic::metadata::MetadataMap;

use crate::error::{Error, Result};

/// Why somebody was not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Unknown user or wrong password.
    WrongPassword,
    /// A bearer token that is not ours, or no longer valid.
    UnknownToken,
    /// Right, but not allowed in; the text says why.
    Denied(String),
    /// It could not be checked now; the text says why.
    Unavailable(String),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::WrongPassword => Error::WrongPassword,
            Refusal::UnknownToken => {
                Error::Unauthenticated("the bearer token is unknown or has expired; connect again".to_owned())
            }
            Refusal::Denied(why) => Error::Denied(why),
            Refusal::Unavailable(why) => {
                Error::Sql { error: Box::new(sql::Error::new(base::ErrorKind::Unavailable, why)), statement: None }
            }
        }
    }
}

/// Decides who may connect. Implemented by the server.
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// Checks a user name and a password.
    async fn password(&self, user: &str, password: &str) -> Result<Principal, Refusal>;

    /// Checks a bearer token that the handshake of this server did not issue. It is asked at every request that carries one.
    async fn bearer(&self, token: &str) -> Result<Principal, Refusal> {
        let _ = token;
        Err(Refusal::UnknownToken)
    }

    /// The principal of clients without credentials; none means that they are refused.
    fn anonymous(&self) -> Option<Principal> {
        None
    }
}

/// Lets everybody in, as the administrator: for tests, and for a server that listens on loopback only.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrustEveryone;

#[async_trait]
impl Authenticator for TrustEveryone {
    async fn password(&self, _user: &str, _password: &str) -> Result<Principal, Refusal> {
        Ok(Principal::admin())
    }

    fn anonymous(&self) -> Option<Principal> {
        Some(Principal::admin())
    }
}

/// Credentials as a request carries them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// None at all.
    Missing,
    /// User name and password.
    Basic { user: String, password: String },
    /// A token, ours or another issuer's.
    Bearer(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets stay out of logs.
        match self {
            Credentials::Missing => f.write_str("Missing"),
            Credentials::Basic { user, .. } => write!(f, "Basic {{ user: {user:?} }}"),
            Credentials::Bearer(_) => f.write_str("Bearer"),
        }
    }
}

/// Standard base64; Go sends no padding, Java, C++ and Rust do.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Credentials {
    /// Reads the headers of a request.
    pub(crate) fn of(metadata: &MetadataMap) -> Result<Credentials> {
        if let Some(value) = metadata.get("authorization") {
            let text = value
                .to_str()
                .map_err(|_| Error::Unauthenticated("the authorization header is not plain text".to_owned()))?;
            return Credentials::parse(text);
        }
        if let Some(value) = metadata.get_bin("auth-token-bin") {
            let bytes = value
                .to_bytes()
                .map_err(|_| Error::Unauthenticated("the auth-token-bin header is not valid base64".to_owned()))?;
            if !bytes.is_empty() {
                return Ok(Credentials::Bearer(String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        Ok(Credentials::Missing)
    }

    fn parse(header: &str) -> Result<Credentials> {
        let header = header.trim();
        if header.is_empty() {
            return Ok(Credentials::Missing);
        }
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            // A client that failed to log in may go on with an empty token.
            return Ok(if rest.is_empty() { Credentials::Missing } else { Credentials::Bearer(rest.to_owned()) });
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(Error::Unauthenticated(format!(
                "the authorization scheme \"{scheme}\" is not supported; use Basic or Bearer"
            )));
        }
        let malformed = || Error::Unauthenticated("the Basic credentials are not base64 of user:password".to_owned());
        let bytes = BASE64.decode(rest).map_err(|_| malformed())?;
        let text = String::from_utf8(bytes).map_err(|_| malformed())?;
        let (user, password) = text.split_once(':').ok_or_else(malformed)?;
        Ok(Credentials::Basic { user: user.to_owned(), password: password.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: &str) -> Result<Credentials> {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", header.parse().unwrap());
        Credentials::of(&metadata)
    }

    fn basic(user: &str, password: &str) -> Credentials {
        Credentials::Basic { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn basic_credentials_of_every_client() {
        assert_eq!(read("Basic YWRtaW46cw==").unwrap(), basic("admin", "s"));
        assert_eq!(read("Basic YWRtaW46cw").unwrap(), basic("admin", "s"), "without padding, as Go sends it");
        assert_eq!(read("basic YTpiOmM6").unwrap(), basic("a", "b:c:"), "colons belong to the password");
        assert_eq!(read("Basic w7w6w58").unwrap(), basic("ü", "ß"));
        assert_eq!(read("Basic Og==").unwrap(), basic("", ""));
    }

    #[test]
    fn other_headers() {
        assert_eq!(read("Bearer abc").unwrap(), Credentials::Bearer("abc".into()));
        assert_eq!(read("Bearer ").unwrap(), Credentials::Missing);
        assert_eq!(Credentials::of(&MetadataMap::new()).unwrap(), Credentials::Missing);
        let mut metadata = MetadataMap::new();
        metadata.insert_bin("auth-token-bin", tonic::metadata::MetadataValue::from_bytes(b"tok"));
        assert_eq!(Credentials::of(&metadata).unwrap(), Credentials::Bearer("tok".into()));
        for wrong in ["Digest x", "Basic !!!", "Basic YWRtaW4="] {
            assert!(matches!(read(wrong), Err(Error::Unauthenticated(_))), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?} {:?}", basic("u", "secret"), Credentials::Bearer("secret".into()));
        assert!(!text.contains("secret"), "{text}");
    }
}
