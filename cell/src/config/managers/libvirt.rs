//! What `[[managers]]` of the kind `libvirt` has: host connections, and where a VM's parts come from.

use std::time::Duration;

use axum::http::Uri;
use cellbus_bus::ids::{HostId, InvalidId, ShortName};

use super::super::Settings;

/// A set of libvirt hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libvirt {
    /// Each by a name of its own.
    pub hosts: Vec<LibvirtHost>,
    /// What runs the guests.
    pub domain: LibvirtDomain,
    /// The storage pool for disks; `None`: VMs have none.
    pub pool: Option<String>,
    /// The storage pool with images, which disks are laid over; `None`: disks are empty.
    pub images: Option<String>,
    /// The libvirt network that a VM's card is on; `None`: it has none.
    pub network: Option<String>,
    /// A kernel that is booted in place of what is on the disk.
    pub boot: Option<LibvirtBoot>,
    /// A directory of each host that takes what guests write to their serial console; `None`: nowhere.
    pub console_dir: Option<String>,
    /// Disk of each host, GiB, where there is no pool to ask.
    pub host_disk_gib: u64,
    /// Whether the pool is the same storage on all hosts.
    pub shared_storage: bool,
    /// Whether a running VM that cannot be moved live is shut off, moved and started.
    pub cold_moves: bool,
    /// How long a guest may take to shut down before it is powered off.
    pub stop_grace: Duration,
    /// Where cloud-init gets user data from; `None`: there is none.
    pub seed_from: Option<String>,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibvirtHost {
    /// What Cellbus calls it.
    pub name: HostId,
    /// What libvirt opens.
    pub uri: String,
    /// Whether an operator has said that it is gone for good: it is not asked anything.
    pub out: bool,
    /// Its gear class, which jobs may ask for; `None`: it has none.
    pub gear: Option<ShortName>,
}

/// What runs the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibvirtDomain {
    /// The processor.
    Kvm,
    /// QEMU, in software.
    Qemu,
    /// Nothing: libvirt's test driver.
    Test,
}

impl LibvirtDomain {
    /// As libvirt and `libvirt.domain` say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Test => "test",
        }
    }
}

/// A kernel from the host's file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibvirtBoot {
    /// Its path.
    pub kernel: String,
    /// That of its first file system, if it has one.
    pub initrd: Option<String>,
    /// What it is told.
    pub cmdline: String,
}

impl Settings {
    /// # Errors
    /// The key that is wrong, and how.
    pub(super) fn libvirt(&self) -> Result<Libvirt, (&'static str, String)> {
        let some = |key: &str| Some(self.text(key)).filter(|text| !text.is_empty());
        let out = self.names("libvirt.out");
        let mut hosts: Vec<LibvirtHost> = Vec::new();
        for text in self.names("libvirt.hosts") {
            let host = host(&text, &out).map_err(|message| ("libvirt.hosts", format!("{text}: {message}")))?;
            if hosts.iter().any(|other| other.name == host.name) {
                return Err(("libvirt.hosts", format!("{} stands here twice", host.name)));
            }
            hosts.push(host);
        }
        if hosts.is_empty() {
            return Err(("libvirt.hosts", "name at least one host: [\"h1=qemu+tls://h1.example/system\"]".to_owned()));
        }
        if let Some(unknown) = out.iter().find(|name| hosts.iter().all(|host| host.name.as_str() != name.as_str())) {
            return Err(("libvirt.out", format!("{unknown} is none of `libvirt.hosts`")));
        }
        for text in self.names("libvirt.gear") {
            let wrong = |why: String| ("libvirt.gear", format!("{text}: {why}"));
            let (name, class) = text.split_once('=').ok_or_else(|| wrong("write name=class".to_owned()))?;
            let class: ShortName = class.parse().map_err(|error: InvalidId| wrong(error.to_string()))?;
            let host = hosts.iter_mut().find(|host| host.name.as_str() == name);
            let host = host.ok_or_else(|| wrong(format!("{name} is none of `libvirt.hosts`")))?;
            if host.gear.replace(class).is_some() {
                return Err(wrong(format!("{name} stands here twice")));
            }
        }
        let seed_from = some("libvirt.seed_from");
        if let Some(url) = &seed_from {
            seed(url).map_err(|why| ("libvirt.seed_from", why.to_owned()))?;
        }
        for key in ["libvirt.pool", "libvirt.images", "libvirt.network"] {
            if self.text(key).contains('/') {
                return Err((key, "the name that libvirt has for it, with no `/`".to_owned()));
            }
        }
        for key in ["libvirt.kernel", "libvirt.initrd", "libvirt.console_dir"] {
            if some(key).is_some_and(|path| !path.starts_with('/')) {
                return Err((key, "a path of the hosts, from `/` on".to_owned()));
            }
        }
        let boot = some("libvirt.kernel").map(|kernel| LibvirtBoot {
            kernel,
            initrd: some("libvirt.initrd"),
            cmdline: self.text("libvirt.cmdline"),
        });
        let images = some("libvirt.images");
        if images.is_some() && some("libvirt.pool").is_none() {
            return Err(("libvirt.images", "disks laid over images need `libvirt.pool`".to_owned()));
        }
        let domain = match self.text("libvirt.domain").as_str() {
            "qemu" => LibvirtDomain::Qemu,
            "test" => LibvirtDomain::Test,
            _ => LibvirtDomain::Kvm,
        };
        Ok(Libvirt {
            hosts,
            domain,
            pool: some("libvirt.pool"),
            images,
            network: some("libvirt.network"),
            boot,
            console_dir: some("libvirt.console_dir"),
            host_disk_gib: self.count("libvirt.host_disk") >> 30,
            shared_storage: self.flag("libvirt.shared_storage"),
            cold_moves: self.flag("libvirt.cold_moves"),
            stop_grace: self.time("libvirt.stop_grace"),
            seed_from,
        })
    }
}

/// What cloud-init takes as the place of a seed, and SMBIOS and a line of it can hold.
fn seed(url: &str) -> Result<(), &'static str> {
    let parsed = url.parse::<Uri>().map_err(|_| "it is no URL")?;
    if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.authority().is_none() {
        return Err("an address of http or https");
    }
    if parsed.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("passwords do not stand here: guests can read it");
    }
    if !url.ends_with('/') || parsed.query().is_some() {
        return Err("it ends with `/`: cloud-init puts `user-data` and `meta-data` behind it");
    }
    if url.contains(';') || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("`;` ends it in what the guest is told");
    }
    Ok(())
}

/// `name=uri`.
fn host(text: &str, out: &[String]) -> Result<LibvirtHost, String> {
    let Some((name, uri)) = text.split_once('=') else { return Err("write name=uri".to_owned()) };
    let name: HostId = name.parse().map_err(|error: InvalidId| error.to_string())?;
    let Some((scheme, rest)) = uri.split_once("://") else { return Err("a URI of libvirt has ://".to_owned()) };
    match scheme {
        "qemu" | "qemu+unix" | "qemu+tls" | "qemu+ssh" | "qemu+libssh" | "qemu+libssh2" | "test" => {}
        "qemu+tcp" => return Err("whoever is in between could do anything to this host: use qemu+tls".to_owned()),
        _ => return Err("qemu+tls, qemu+ssh, qemu or test".to_owned()),
    }
    // libvirt's paths may lack a host, which the parser of web addresses wants.
    let parsed: Option<Uri> =
        format!("x://{}", if rest.starts_with('/') { format!("local{rest}") } else { rest.to_owned() }).parse().ok();
    let Some(parsed) = parsed else { return Err("it is no URI".to_owned()) };
    if parsed
        .authority()
        .is_some_and(|authority| authority.as_str().split_once('@').is_some_and(|(user, _)| user.contains(':')))
    {
        return Err("passwords do not stand here: libvirt has auth.conf for them".to_owned());
    }
    if parsed.query().is_some_and(|query| query.split('&').any(|part| part.starts_with("no_verify"))) {
        return Err("no_verify lets whoever is in between do anything to this host".to_owned());
    }
    Ok(LibvirtHost { out: out.iter().any(|gone| gone == name.as_str()), name, uri: uri.to_owned(), gear: None })
}

impl Libvirt {
    /// As `[[managers]]` has it: each value as TOML.
    pub(in super::super) fn keys(&self) -> Vec<(&'static str, toml::Value)> {
        let text = |text: &str| toml::Value::String(text.to_owned());
        let names = |names: Vec<String>| toml::Value::Array(names.into_iter().map(toml::Value::String).collect());
        let hosts = self.hosts.iter().map(|host| format!("{}={}", host.name, host.uri)).collect();
        let out: Vec<String> = self.hosts.iter().filter(|host| host.out).map(|host| host.name.to_string()).collect();
        let gear = self.hosts.iter().filter_map(|host| Some(format!("{}={}", host.name, host.gear.as_ref()?)));
        let gear: Vec<String> = gear.collect();
        let mut keys = vec![
            ("libvirt.hosts", names(hosts)),
            ("libvirt.domain", text(self.domain.as_str())),
            ("libvirt.host_disk", text(&super::super::value::size(self.host_disk_gib << 30))),
            ("libvirt.shared_storage", toml::Value::Boolean(self.shared_storage)),
            ("libvirt.cold_moves", toml::Value::Boolean(self.cold_moves)),
            ("libvirt.stop_grace", text(&super::super::value::time(self.stop_grace))),
        ];
        if !out.is_empty() {
            keys.push(("libvirt.out", names(out)));
        }
        if !gear.is_empty() {
            keys.push(("libvirt.gear", names(gear)));
        }
        let optional = [
            ("libvirt.seed_from", &self.seed_from),
            ("libvirt.pool", &self.pool),
            ("libvirt.images", &self.images),
            ("libvirt.network", &self.network),
            ("libvirt.console_dir", &self.console_dir),
        ];
        keys.extend(optional.into_iter().filter_map(|(key, value)| Some((key, text(value.as_ref()?)))));
        if let Some(boot) = &self.boot {
            keys.push(("libvirt.kernel", text(&boot.kernel)));
            keys.extend(boot.initrd.iter().map(|path| ("libvirt.initrd", text(path))));
            keys.push(("libvirt.cmdline", text(&boot.cmdline)));
        }
        keys
    }
}
