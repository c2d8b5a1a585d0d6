use cellbus_bus::kafka::Mechanism;

use super::*;

fn from_text(text: &str) -> Result<Config, Vec<Error>> {
    Config::load(Sources { file: Some(File { name: "cellbus.toml".into(), text: text.into() }), ..Sources::default() })
}
fn errors(text: &str) -> Vec<String> {
    from_text(text).expect_err("it is refused").iter().map(ToString::to_string).collect()
}
fn variables(variables: &[(&str, &str)]) -> Result<Config, Vec<Error>> {
    let variables = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    Config::load(Sources { variables, ..Sources::default() })
}

#[test]
fn the_defaults_are_sound() {
    let config = Config::load(Sources::default()).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:7070");
    assert_eq!(config.shards.get(), 256);
    assert_eq!(config.tenants, Tenants::Any);
    assert_eq!(config.directory.checkpoint_dir, config.data_dir.join("directory"));
    assert!(!config.http.insecure);
    for key in MANAGER_KEYS.iter().filter(|key| !key.default.is_empty()) {
        value::check(&key.kind, &value::Raw::Loose(key.default.to_owned())).unwrap();
    }
}

#[test]
fn later_sources_win() {
    let override_ =
        |key: &str, value: &str| Override { key: key.into(), value: value.into(), flag: format!("--{key}") };
    let sources = Sources {
        file: Some(File { name: "c.toml".into(), text: "cells = 3\nshards = 16\n[jobs]\nretention = \"1d\"\n".into() }),
        variables: vec![
            ("CELLBUS__SHARDS".into(), "32".into()),
            ("CELLBUS_JOBS__RETENTION".into(), "2d".into()),
            ("CELLBUS_SERVER".into(), "http://x".into()),
            ("PATH".into(), "/bin".into()),
            ("CELLBUS__TENANTS".into(), "acme, globex".into()),
        ],
        overrides: vec![override_("shards", "64")],
    };
    let config = Config::load(sources).unwrap();
    assert_eq!((config.cells, config.shards.get()), (3, 64));
    assert_eq!(config.jobs.retention, Duration::from_secs(2 * 24 * 3600));
    assert!(matches!(&config.tenants, Tenants::Listed(list) if list.len() == 2));
    let dump = config.dump();
    assert!(dump.contains("cells = 3  # c.toml:1\n"), "{dump}");
    assert!(dump.contains("shards = 64  # --shards\n"), "{dump}");
    assert!(dump.contains("retention = \"2d\"  # CELLBUS_JOBS__RETENTION\n"), "{dump}");
}

#[test]
fn unknown_keys_name_the_nearest_and_where() {
    assert_eq!(
        errors("\n\nshrads = 8\n"),
        ["cellbus.toml:3: shrads: there is no such key; the nearest key is `shards`"]
    );
    assert_eq!(
        errors("[jobs]\nremeber = \"1d\"\n"),
        ["cellbus.toml:2: jobs.remeber: there is no such key; the nearest key is `jobs.remember`"]
    );
    assert_eq!(
        errors("[[managers]]\nname = \"m\"\nhost = 3\n"),
        ["cellbus.toml:3: managers.host: there is no such key; the nearest key is `managers.hosts`"]
    );
    let seen = variables(&[("CELLBUS_JOBS__REMEMBR", "1d")]).unwrap_err();
    assert_eq!(
        seen[0].to_string(),
        "CELLBUS_JOBS__REMEMBR: there is no such key; the nearest key is `CELLBUS_JOBS__REMEMBER`"
    );
    let seen = Config::load(Sources {
        overrides: vec![Override { key: "liste".into(), value: "x".into(), flag: "--set".into() }],
        ..Sources::default()
    });
    assert_eq!(seen.unwrap_err()[0].to_string(), "--set: liste: there is no such key; the nearest key is `listen`");
}

#[test]
fn every_mistake_is_reported_at_once_in_order() {
    let text = "cells = 0\nbus = \"rabbit\"\nshards = \"8\"\n[jobs]\nremember = 14\n[http]\ninsecure = \"yes\"\n[lease]\nttl = \"1y\"\n";
    let seen = errors(text);
    assert_eq!(seen.len(), 6, "{seen:#?}");
    assert_eq!(seen[0], "cellbus.toml:1: cells: 0 is not 1 to 64");
    assert!(seen[1].starts_with("cellbus.toml:2: bus: \"rabbit\" is not \"embedded\" or"), "{seen:#?}");
    assert!(seen[2].starts_with("cellbus.toml:3: shards: \"8\" is not 1 to 4096"), "{seen:#?}");
    assert!(seen[3].starts_with("cellbus.toml:5: jobs.remember: 14 is not a time such as"), "{seen:#?}");
    assert!(seen[5].starts_with("cellbus.toml:9: lease.ttl"), "{seen:#?}");
}

#[test]
fn what_contradicts_itself_is_refused() {
    assert!(
        errors("[jobs]\nretention = \"30d\"\n")[0].contains("jobs.remember: it is shorter than jobs.retention (30d)")
    );
    assert!(errors("[lease]\nttl = \"1s\"\n")[0].contains("lease.beat: three beats"));
    assert!(errors("[circuit]\nopen_max = \"500ms\"\n")[0].contains("circuit.open_max"));
    assert!(errors("tenants = [\"Acme\"]\n")[0].contains("must be 1 to 63 of [a-z0-9-]"));
    assert!(errors("tenants = [\"a\", \"a\"]\n")[0].contains("twice"));
    assert!(errors("[log]\nlevel = \"info,x=loud\"\n")[0].contains("log.level"));
    assert!(errors("listen = \"7070\"\n")[0].contains("no address with port"));
    let named =
        |name: &str| format!("[scale]\nlauncher = \"kubernetes\"\nkubernetes = {{ deployment = \"{name}\" }}\n");
    assert!(errors(&named("Cells"))[0].contains("scale.kubernetes.deployment: `Cells` is no name"));
    assert!(errors(&named("a/b"))[0].contains("no name in Kubernetes"));
    assert!(from_text(&named("eu.cells-1")).is_ok());
}

#[test]
fn listening_beyond_loopback_needs_a_word() {
    let seen = errors("listen = \"0.0.0.0:7070\"\n");
    assert!(seen[0].starts_with("cellbus.toml:1: listen: 0.0.0.0:7070 is reached from beyond"), "{seen:?}");
    assert!(from_text("listen = \"0.0.0.0:7070\"\n[http]\ninsecure = true\n").is_ok());
    assert!(from_text("listen = \"[::1]:0\"\n").is_ok());
    assert!(from_text("listen = \"localhost:80\"\n").is_ok());
    // What would make it safe is named as far as it is not there.
    let far = "listen = \"0.0.0.0:7070\"\n";
    let tls = "[tls]\ncert = \"c\"\nkey = \"k\"\n";
    let auth = "[auth]\ntokens = \"t\"\n";
    let members = "[members.tls]\nca = \"a\"\ncert = \"c\"\nkey = \"k\"\n";
    assert!(errors(far)[0].contains("no TLS (`tls.cert`, `tls.key`) and no authentication"), "{:?}", errors(far));
    assert!(errors(&format!("{far}{tls}"))[0].contains("there is no authentication (`auth.tokens`);"));
    assert!(errors(&format!("{far}{auth}"))[0].contains("there is no TLS (`tls.cert`, `tls.key`);"));
    assert!(from_text(&format!("{far}{tls}{auth}")).is_ok());
    let nats = "bus = \"nats\"\n";
    assert!(errors(&format!("{far}{nats}{tls}{auth}")).iter().any(|e| e.contains("no TLS between members")));
    assert!(from_text(&format!("{far}{nats}{tls}{auth}{members}")).is_ok());
}

#[test]
fn certificates_for_a_collector_fit_together() {
    let otlp = |endpoint: &str, more: &str| format!("[trace.otlp]\nendpoint = \"{endpoint}\"\n{more}");
    let all = "ca = \"a\"\ncert = \"c\"\nkey = \"k\"\n";
    let config = from_text(&otlp("https://c:4318", all)).unwrap();
    let tls = config.otlp.as_ref().unwrap().tls.clone();
    assert_eq!(tls.files().iter().filter_map(|file| file.to_str()).collect::<Vec<_>>(), ["a", "c", "k"]);
    assert_eq!(from_text(&config.dump()).unwrap().otlp, config.otlp);
    let ca = from_text(&otlp("https://c:4318", "ca = \"a\"\n")).unwrap().otlp.unwrap().tls;
    assert!(ca.own.is_none() && ca.files().len() == 1);
    assert!(errors(&otlp("https://c:4318", "cert = \"c\"\n"))[0].contains("set `trace.otlp.key` too"));
    assert!(errors(&otlp("https://c:4318", "key = \"k\"\n"))[0].contains("set `trace.otlp.cert` too"));
    let clear = errors(&otlp("http://127.0.0.1:4318", all));
    assert!(
        clear.len() == 3 && clear.iter().all(|error| error.contains("only with an https:// endpoint")),
        "{clear:?}"
    );
}

#[test]
fn certificates_come_with_their_keys_and_members_with_tls() {
    assert!(errors("[tls]\ncert = \"c\"\n")[0].contains("set `tls.key` too"));
    assert!(errors("[tls]\nkey = \"c\"\n")[0].contains("set `tls.cert` too"));
    let all = "[members.tls]\nca = \"a\"\ncert = \"c\"\nkey = \"k\"\n";
    assert!(errors(all)[0].contains("set `tls.cert` and `tls.key` too"), "{:?}", errors(all));
    let some = errors("[tls]\ncert = \"c\"\nkey = \"k\"\n[members.tls]\nca = \"a\"\n");
    assert!(some.len() == 2 && some.iter().all(|e| e.contains("all three, or none")), "{some:?}");
    let config = variables(&[
        ("CELLBUS_MEMBERS__TLS__CA", "a"),
        ("CELLBUS_MEMBERS__TLS__CERT", "b"),
        ("CELLBUS_MEMBERS__TLS__KEY", "c"),
        ("CELLBUS_TLS__CERT", "d"),
        ("CELLBUS_TLS__KEY", "e"),
        ("CELLBUS_AUTH__METRICS", "open"),
    ])
    .unwrap();
    assert_eq!(config.members_tls.unwrap().ca.to_str(), Some("a"));
    assert!(config.auth.metrics_open && config.auth.tokens.is_none());
    // A dump with a table inside a table gives the same again.
    let text = format!("[tls]\ncert = \"c\"\nkey = \"k\"\n{all}");
    let config = from_text(&text).unwrap();
    assert_eq!(from_text(&config.dump()).unwrap().members_tls, config.members_tls);
}

#[test]
fn managers_elsewhere_are_talked_to_in_tls() {
    let manager = |address: &str| format!("[[managers]]\nname = \"m\"\naddress = \"{address}\"\n");
    let tls = "[tls]\ncert = \"c\"\nkey = \"k\"\n[members.tls]\nca = \"a\"\ncert = \"c\"\nkey = \"k\"\n";
    for near in ["http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"] {
        assert!(from_text(&manager(near)).is_ok(), "{near}");
    }
    for far in ["http://10.0.0.1:1", "http://host:1"] {
        assert!(errors(&manager(far))[0].contains("write https://"), "{far}");
        assert!(from_text(&format!("[http]\ninsecure = true\n{}", manager(far))).is_ok(), "{far}");
    }
    assert!(errors(&manager("https://host:1"))[0].contains("set `members.tls.ca`"));
    assert!(from_text(&format!("{tls}{}", manager("https://host:1"))).is_ok());
    assert!(errors(&manager("ftp://host:1"))[0].contains("begins with http://"));
}

#[test]
fn managers_are_read_and_checked() {
    let config = from_text(
        "[[managers]]\nname = \"m-1\"\nhosts = 7\nhost_memory = \"1TiB\"\nover_commit = { cpu = 4, memory = 1.5 }\nstarts_read_only = true\n\
         [managers.limits]\ncreates_max = 3\n[[managers]]\nname = \"m-2\"\naddress = \"http://127.0.0.1:9\"\n",
    )
    .unwrap();
    let [one, two] = config.managers.as_slice() else { panic!("two managers") };
    assert_eq!((one.over_commit_cpu, one.over_commit_memory), (4.0, 1.5));
    assert_eq!(one.limits.creates_max, Some(3));
    assert!(one.starts_read_only && !two.starts_read_only);
    assert_eq!(
        one.kind,
        ManagerKind::Simulated {
            hosts: 7,
            host_vcpus: 64,
            host_memory_mib: 1 << 20,
            host_disk_gib: 10 << 10,
            hosts_per_datastore: 0
        }
    );
    assert_eq!(two.kind, ManagerKind::Remote { address: "http://127.0.0.1:9".into() });
    assert!(
        errors("[[managers]]\nhosts = 1\n")[0].starts_with("cellbus.toml:1: managers[0].name: a manager name must be")
    );
    let twice = errors("[[managers]]\nname = \"m\"\n[[managers]]\nname = \"m\"\n");
    assert!(twice[0].contains("another manager named `m`"), "{twice:?}");
    assert!(errors("[managers]\nname = \"m\"\n")[0].contains("list of tables"));
    assert!(variables(&[("CELLBUS_MANAGERS__NAME", "m")]).unwrap_err()[0].message.contains("file only"));
}

#[test]
fn a_vcenter_says_how_it_is_trusted_and_signed_in_to() {
    let of = |more: &str| from_text(&format!("[[managers]]\nname = \"v\"\nkind = \"vsphere\"\n{more}"));
    let print = "AB:".repeat(31) + "ab";
    let sound = format!(
        "address = \"https://vc.example\"\nvsphere.user = \"u\"\nvsphere.password_file = \"p\"\nvsphere.thumbprint = \"{print}\"\n"
    );
    let config = of(&sound).unwrap();
    let ManagerKind::Vsphere(vsphere) = &config.managers[0].kind else { panic!("{config:?}") };
    assert_eq!((vsphere.trust.clone(), vsphere.folder.as_str()), (Trust::Thumbprint([0xab; 32]), "cellbus"));
    assert_eq!(from_text(&config.dump()).unwrap().managers, config.managers);
    for (wrong, key) in [
        (sound.replace("https:", "http:"), "managers[0].address"),
        (sound.replace("https://vc", "https://u:p@vc"), "managers[0].address"),
        (sound.replace("vsphere.user = \"u\"", ""), "managers[0].vsphere.user"),
        (sound.replace("AB:", "AB"), ""),
        (sound.replacen("AB:", "A", 1), "managers[0].vsphere.thumbprint"),
        (sound.replacen("AB:", "é", 1), "managers[0].vsphere.thumbprint"),
        (format!("{sound}vsphere.ca = \"c\"\n"), "managers[0].vsphere.thumbprint"),
        (format!("{sound}vsphere.password_env = \"P\"\n"), "managers[0].vsphere.password_env"),
        (sound.replace("vsphere.password_file = \"p\"", ""), "managers[0].vsphere.password_file"),
        (format!("{sound}vsphere.folder = \"a/b\"\n"), "managers[0].vsphere.folder"),
        (format!("{sound}vsphere.linked_clones = true\n"), "managers[0].vsphere.linked_clones"),
        (format!("{sound}vsphere.templates = \"t\"\nvsphere.linked_clones = true\n"), ""),
        (format!("{sound}vsphere.password = \"hunter2\"\n"), "managers.vsphere.password"),
    ] {
        match of(&wrong) {
            Ok(_) => assert_eq!(key, "", "{wrong}"),
            Err(errors) => assert!(errors.iter().any(|error| error.key == key), "{wrong}: {errors:?}"),
        }
    }
    let nowhere = "[[managers]]\nname = \"r\"\nkind = \"remote\"\n";
    assert!(errors(nowhere)[0].contains("has an address"));
}

#[test]
fn libvirt_hosts_are_named_and_reached_safely() {
    let of = |more: &str| from_text(&format!("[[managers]]\nname = \"l\"\nkind = \"libvirt\"\n{more}"));
    let hosts = |list: &str| format!("libvirt.hosts = [{list}]\n");
    let sound = hosts(
        "\"h1=qemu+tls://h1.example/system\", \"h2=qemu+ssh://cellbus@h2.example/system\", \"t=test:///default\"",
    ) + "libvirt.out = [\"h2\"]\nlibvirt.pool = \"disks\"\nlibvirt.images = \"images\"\nlibvirt.kernel = \"/k\"\n\
           libvirt.shared_storage = true\nlibvirt.domain = \"qemu\"\nlibvirt.stop_grace = \"5s\"\n\
           libvirt.gear = [\"t=g3\"]\nlibvirt.seed_from = \"https://seeds.example/all/\"\n";
    let config = of(&sound).unwrap();
    let ManagerKind::Libvirt(libvirt) = &config.managers[0].kind else { panic!("{config:?}") };
    assert_eq!(libvirt.hosts.iter().map(|host| host.out).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(libvirt.hosts[2].gear.as_ref().map(|gear| gear.as_str()), Some("g3"));
    assert_eq!((libvirt.host_disk_gib, libvirt.stop_grace.as_secs()), (10 << 10, 5));
    assert_eq!(from_text(&config.dump()).unwrap().managers, config.managers);
    for (wrong, key) in [
        (String::new(), "libvirt.hosts"),
        (hosts("\"qemu:///system\""), "libvirt.hosts"),
        (hosts("\"h1=qemu:/system\""), "libvirt.hosts"),
        (hosts("\"h 1=qemu:///system\""), "libvirt.hosts"),
        (hosts("\"h1=qemu:///system\", \"h1=qemu:///session\""), "libvirt.hosts"),
        (hosts("\"h1=qemu+tcp://h1/system\""), "libvirt.hosts"),
        (hosts("\"h1=esx://h1/\""), "libvirt.hosts"),
        (hosts("\"h1=qemu+ssh://me:hunter2@h1/system\""), "libvirt.hosts"),
        (hosts("\"h1=qemu+tls://h1/system?no_verify=1\""), "libvirt.hosts"),
        (hosts("\"h1=qemu+tls://h é/system\""), "libvirt.hosts"),
        (sound.replace("[\"h2\"]", "[\"h3\"]"), "libvirt.out"),
        (sound.replace("libvirt.pool = \"disks\"\n", ""), "libvirt.images"),
        (sound.replace("\"disks\"", "\"a/b\""), "libvirt.pool"),
        (sound.replace("\"/k\"", "\"k\""), "libvirt.kernel"),
        (sound.replace("t=g3", "h9=g3"), "libvirt.gear"),
        (sound.replace("t=g3", "t"), "libvirt.gear"),
        (sound.replace("t=g3", "t=a b"), "libvirt.gear"),
        (sound.replace("\"t=g3\"", "\"t=g3\", \"t=g4\""), "libvirt.gear"),
        (sound.replace("/all/", "/all"), "libvirt.seed_from"),
        (sound.replace("/all/", "/a;i=1/"), "libvirt.seed_from"),
        (sound.replace("https://seeds", "ftp://seeds"), "libvirt.seed_from"),
        (sound.replace("https://seeds", "https://me:hunter2@seeds"), "libvirt.seed_from"),
    ] {
        let errors = of(&wrong).unwrap_err();
        assert!(errors.iter().any(|error| error.key.ends_with(key)), "{wrong}: {errors:?}");
    }
}

#[test]
fn secrets_are_never_printed() {
    let config = variables(&[("CELLBUS_NATS__TOKEN", "hunter2")]).unwrap();
    assert_eq!(config.nats.sign_in, SignIn::Token(SecretFrom::Given(Secret::new("hunter2"))));
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!config.dump().contains("hunter2"));
    assert!(config.dump().contains("# token is set (CELLBUS_NATS__TOKEN) and not shown"));
    let seen = errors("[nats]\ntoken = \"hunter2\"\n");
    assert!(seen[0].contains("does not stand in the configuration file") && !seen[0].contains("hunter2"), "{seen:?}");
}

#[test]
fn a_dump_gives_the_same_again() {
    let config = from_text(
        "data_dir = 'C:\\x \"y\"'\ncells = 5\ntenants = [\"acme\"]\n[http]\nwait_max = \"90s\"\n\
         [[managers]]\nname = \"m\"\nlimits.power_max = 9\n[[managers]]\nname = \"n\"\naddress = \"http://localhost:1\"\n",
    )
    .unwrap();
    let again = from_text(&config.dump()).unwrap();
    let strip =
        |text: String| text.lines().map(|l| l.split("  # ").next().unwrap_or("").to_owned()).collect::<Vec<_>>();
    assert_eq!(strip(config.dump()), strip(again.dump()));
    assert_eq!(config.managers, again.managers);
}

#[test]
fn what_is_not_toml_is_refused() {
    assert!(errors("cells = = 3")[0].starts_with("cellbus.toml:1: this is not TOML"));
    assert!(errors("cells = 3\ncells = 4\n")[0].starts_with("cellbus.toml:2: this is not TOML: duplicate key"));
    assert!(errors(&" ".repeat(2 << 20))[0].contains("more than"));
}

#[test]
fn the_documented_table_is_the_one_in_force() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- keys: begin -->\n", "<!-- keys: end -->");
    let (head, rest) = page.split_once(begin).unwrap();
    let (table, tail) = rest.split_once(end).unwrap();
    let wanted = format!("\n{}\n", markdown());
    if std::env::var_os("CELLBUS_BLESS").is_some() {
        std::fs::write(path, format!("{head}{begin}{wanted}{end}{tail}")).unwrap();
        return;
    }
    assert!(
        table == wanted,
        "ops/docs/configuration.md is out of date: run this test with CELLBUS_BLESS=1 and look at what changed"
    );
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".{0,200}", value in ".{0,40}") {
        let _ = from_text(&text);
        let _ = from_text(&format!("data_dir = \"x\"\n[jobs]\nremember = {value}\n"));
        let _ = variables(&[("CELLBUS_JOBS__REMEMBER", &value), ("CELLBUS_DISK__FREE_MIN", &value), ("CELLBUS__LISTEN", &value)]);
    }
}

#[test]
fn the_checkpoint_moves_with_the_data_unless_it_lies_elsewhere() {
    let usual = from_text("").unwrap().in_directory(Path::new("/there"));
    assert_eq!(usual.directory.checkpoint_dir, Path::new("/there/directory"));
    let elsewhere =
        from_text("[directory]\ncheckpoint_dir = \"/elsewhere\"\n").unwrap().in_directory(Path::new("/there"));
    assert_eq!(elsewhere.directory.checkpoint_dir, Path::new("/elsewhere"));
    assert_eq!(elsewhere.data_dir, Path::new("/there"));
}

#[test]
fn nats_settings_fit_together() {
    let nats = |text: &str| from_text(&format!("[nats]\n{text}"));
    assert_eq!(from_text("").unwrap().lease.ttl, Duration::from_secs(3));
    assert_eq!(nats("replicas = 3").unwrap().lease.ttl, Duration::from_secs(12));
    assert_eq!(from_text("[lease]\nttl = \"9s\"\n[nats]\nreplicas = 3").unwrap().lease.ttl, Duration::from_secs(9));
    assert_eq!(nats("user = \"ann\"\npassword_file = \"f\"").unwrap().nats.sign_in, {
        SignIn::User("ann".to_owned(), SecretFrom::File("f".into()))
    });
    let sizes = nats("lane_size_max = \"2GiB\"").unwrap().nats;
    assert_eq!((sizes.ingress_bytes_max, sizes.lane_bytes_max), (None, Some(2 << 30)));
    for (wrong, key) in [
        ("lane_size_max = 7", "nats.lane_size_max"),
        ("urls = []", "nats.urls"),
        ("urls = [\"http://here\"]", "nats.urls"),
        ("urls = [\"nats://ann:secret@here\"]", "nats.urls"),
        ("replicas = 2", "nats.replicas"),
        ("cert = \"c.pem\"", "nats.cert"),
        ("user = \"ann\"", "nats.user"),
        ("token_file = \"t\"\ncredentials = \"c\"", "nats"),
    ] {
        let errors = nats(wrong).unwrap_err();
        assert!(errors.iter().any(|error| error.key == key), "{wrong}: {errors:?}");
    }
}

#[test]
fn kafka_settings_fit_together() {
    let kafka = |text: &str| from_text(&format!("bus = \"kafka\"\n[kafka]\n{text}"));
    assert_eq!(kafka("").unwrap().lease.ttl, Duration::from_secs(3));
    assert_eq!(kafka("replicas = 3").unwrap().lease.ttl, Duration::from_secs(15));
    assert_eq!(from_text("[kafka]\nreplicas = 3").unwrap().lease.ttl, Duration::from_secs(3), "the bus is another");
    let signs_in = "sasl = \"scram-sha-512\"\nuser = \"ann\"\npassword_file = \"f\"\ntls = true\nca = \"ca.pem\"";
    let user = KafkaSignIn::User {
        mechanism: Mechanism::ScramSha512,
        user: "ann".to_owned(),
        password: SecretFrom::File("f".into()),
    };
    assert_eq!(kafka(signs_in).unwrap().kafka.sign_in, Some(user));
    let token = kafka("sasl = \"oauthbearer\"\ntoken_file = \"t\"\ntls = true").unwrap();
    assert_eq!(token.kafka.sign_in, Some(KafkaSignIn::Token("t".into())));
    for (wrong, key) in [
        ("brokers = []", "kafka.brokers"),
        ("brokers = [\"here\"]", "kafka.brokers"),
        ("brokers = [\"http://here:1\"]", "kafka.brokers"),
        ("brokers = [\"a:1,b:2\"]", "kafka.brokers"),
        ("brokers = [\"ann:secret@here:1\"]", "kafka.brokers"),
        ("replicas = 2", "kafka.replicas"),
        ("cert = \"c.pem\"\ntls = true", "kafka.cert"),
        ("ca = \"ca.pem\"", "kafka.tls"),
        ("user = \"ann\"", "kafka.sasl"),
        ("sasl = \"plain\"", "kafka.sasl"),
        ("password_file = \"f\"", "kafka.sasl"),
        ("sasl = \"oauthbearer\"", "kafka.sasl"),
        ("token_file = \"t\"", "kafka.sasl"),
        ("sasl = \"oauthbearer\"\ntoken_file = \"t\"\nuser = \"ann\"", "kafka.sasl"),
    ] {
        let errors = kafka(wrong).unwrap_err();
        assert!(errors.iter().any(|error| error.key == key), "{wrong}: {errors:?}");
    }
}
