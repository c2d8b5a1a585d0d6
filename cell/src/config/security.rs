//! `[tls]`, `[auth]` and `[members.tls]`: whom this process believes, and who may believe it.

use std::path::PathBuf;

use super::Settings;

/// `[tls]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate of the HTTP API.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// `[auth]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The file of tokens; `None`: everybody may do everything.
    pub tokens: Option<PathBuf>,
    /// Whether `/metrics` is for everybody.
    pub metrics_open: bool,
}

/// `[members.tls]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembersTls {
    /// Who signs members.
    pub ca: PathBuf,
    /// This process's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What is configured of it, where it fits together.
pub(super) struct Security {
    pub(super) tls: Option<Tls>,
    pub(super) auth: Auth,
    pub(super) members_tls: Option<MembersTls>,
}

impl Settings {
    /// `several`: whether there are other processes to talk to.
    pub(super) fn security(&self, several: bool, wrong: &mut impl FnMut(&str, String)) -> Security {
        let tls = match (self.path("tls.cert"), self.path("tls.key")) {
            (Some(cert), Some(key)) => Some(Tls { cert, key }),
            (None, None) => None,
            (Some(_), None) => {
                wrong("tls.cert", "a certificate is of use only with its key: set `tls.key` too".to_owned());
                None
            }
            (None, Some(_)) => {
                wrong("tls.key", "a key is of use only with its certificate: set `tls.cert` too".to_owned());
                None
            }
        };
        let members = ["members.tls.ca", "members.tls.cert", "members.tls.key"];
        let members_tls = match members.map(|key| self.path(key)) {
            [Some(ca), Some(cert), Some(key)] => Some(MembersTls { ca, cert, key }),
            [None, None, None] => None,
            _ => {
                for key in members.into_iter().filter(|key| self.path(key).is_none()) {
                    wrong(key, "members need a CA, a certificate of it and its key: all three, or none".to_owned());
                }
                None
            }
        };
        if members_tls.is_some() && self.path("tls.cert").is_none() && self.path("tls.key").is_none() {
            let message = "members talk to the listener of the HTTP API, which speaks TLS or does not: set `tls.cert` \
                           and `tls.key` too";
            wrong("members.tls.ca", message.to_owned());
        }
        let auth = Auth { tokens: self.path("auth.tokens"), metrics_open: self.text("auth.metrics") == "open" };
        if several && tls.is_some() && members.into_iter().all(|key| self.path(key).is_none()) {
            let message = "members of this cluster could not talk to this process: set `members.tls.ca`, `.cert` and \
                           `.key` too";
            wrong("tls.cert", message.to_owned());
        }
        Security { tls, auth, members_tls }
    }
}
