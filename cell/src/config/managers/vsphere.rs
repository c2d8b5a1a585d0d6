//! What `[[managers]]` of the kind `vsphere` has: a vCenter, how to trust it, how to sign in.

use std::path::PathBuf;

use axum::http::Uri;

use super::super::Settings;

/// A vCenter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vsphere {
    /// `https://host[:port]`, with no path.
    pub address: String,
    /// Why its certificate is believed.
    pub trust: Trust,
    /// Who signs in.
    pub user: String,
    /// With what.
    pub password: Password,
    /// The datacenter by name; `None`: the only one.
    pub datacenter: Option<String>,
    /// Folder of Cellbus's own for its VMs.
    pub folder: String,
    /// Where disks lie; `None`: on the host's datastore with most room.
    pub datastore: Option<String>,
    /// What a new VM's network card is on; `None`: it has none.
    pub network: Option<String>,
    /// Folder of templates below the datacenter's VM folder; `None`: VMs are made empty.
    pub templates: Option<String>,
    /// Whether a clone's disk lies over its template's.
    pub linked_clones: bool,
}

/// Why the certificate of a vCenter is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It comes from an authority in this PEM file, and names the vCenter.
    Authorities(PathBuf),
    /// It is this very one, by its SHA-256.
    Thumbprint([u8; 32]),
}

/// Where a password is. It is read when it is needed, so that one that was changed counts at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// In this file, which holds nothing else.
    File(PathBuf),
    /// In this variable of the environment.
    Variable(String),
}

impl Settings {
    /// # Errors
    /// The key that is wrong, and how.
    pub(super) fn vsphere(&self, address: &str) -> Result<Vsphere, (&'static str, String)> {
        let some = |key: &str| Some(self.text(key)).filter(|text| !text.is_empty());
        let wrong = |key, message: &str| Err((key, message.to_owned()));
        let address = match address.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("https") && uri.host().is_some() && matches!(uri.path(), "" | "/") => {
                address.trim_end_matches('/').to_owned()
            }
            Ok(_) | Err(_) => return wrong("address", "a vCenter is reached at https://host or https://host:port"),
        };
        if address.contains('@') {
            return wrong("address", "who signs in stands in `vsphere.user`, not in the address");
        }
        let trust = match (self.path("vsphere.ca"), some("vsphere.thumbprint")) {
            (Some(file), None) => Trust::Authorities(file),
            (None, Some(text)) => match thumbprint(&text) {
                Some(print) => Trust::Thumbprint(print),
                None => {
                    return wrong("vsphere.thumbprint", "a SHA-256 is 64 hexadecimal digits, with or without colons");
                }
            },
            (None, None) => {
                return wrong(
                    "vsphere.ca",
                    "say why the certificate is believed: set `vsphere.ca` or `vsphere.thumbprint`",
                );
            }
            (Some(_), Some(_)) => return wrong("vsphere.thumbprint", "there is `vsphere.ca` too: keep one of them"),
        };
        let password = match (self.path("vsphere.password_file"), some("vsphere.password_env")) {
            (Some(file), None) => Password::File(file),
            (None, Some(name)) => Password::Variable(name),
            (None, None) => {
                return wrong(
                    "vsphere.password_file",
                    "set it, or `vsphere.password_env`: passwords do not stand here",
                );
            }
            (Some(_), Some(_)) => {
                return wrong("vsphere.password_env", "there is `vsphere.password_file` too: keep one of them");
            }
        };
        let Some(user) = some("vsphere.user") else { return wrong("vsphere.user", "say who signs in") };
        let folder = self.text("vsphere.folder");
        if folder.is_empty() || folder.contains(['/', '%', '\\']) {
            return wrong("vsphere.folder", "the name of one folder, with no `/`, `\\` or `%`");
        }
        let (templates, linked_clones) = (some("vsphere.templates"), self.flag("vsphere.linked_clones"));
        if linked_clones && templates.is_none() {
            return wrong("vsphere.linked_clones", "what is cloned stands in `vsphere.templates`, which is not set");
        }
        Ok(Vsphere {
            address,
            trust,
            user,
            password,
            datacenter: some("vsphere.datacenter"),
            folder,
            datastore: some("vsphere.datastore"),
            network: some("vsphere.network"),
            templates,
            linked_clones,
        })
    }
}

fn thumbprint(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let mut print = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in print.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(print)
}

impl Vsphere {
    /// As `[[managers]]` has it: each value as TOML.
    pub(in super::super) fn keys(&self) -> Vec<(&'static str, toml::Value)> {
        let print = |print: &[u8; 32]| print.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let trust = match &self.trust {
            Trust::Authorities(file) => ("vsphere.ca", file.display().to_string()),
            Trust::Thumbprint(bytes) => ("vsphere.thumbprint", print(bytes)),
        };
        let password = match &self.password {
            Password::File(file) => ("vsphere.password_file", file.display().to_string()),
            Password::Variable(name) => ("vsphere.password_env", name.clone()),
        };
        let fixed = [
            ("address", self.address.clone()),
            trust,
            ("vsphere.user", self.user.clone()),
            password,
            ("vsphere.folder", self.folder.clone()),
        ];
        let optional = [
            ("vsphere.datacenter", &self.datacenter),
            ("vsphere.datastore", &self.datastore),
            ("vsphere.network", &self.network),
            ("vsphere.templates", &self.templates),
        ];
        let set = optional.into_iter().filter_map(|(key, value)| Some((key, value.clone()?)));
        let texts = fixed.into_iter().chain(set).map(|(key, value)| (key, toml::Value::String(value)));
        texts.chain([("vsphere.linked_clones", toml::Value::Boolean(self.linked_clones))]).collect()
    }
}
