//! What the NATS transport says at its start when a server or its streams are not what it needs.
#![cfg(feature = "nats")]

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use cellbus_bus::env::real;
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_bus::nats::{Auth, Config, Nats, OpenError, Secret};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::runtime::Handle;

async fn open(config: Config) -> Result<Arc<Nats>, OpenError> {
    Nats::open(config, real(Handle::current())).await
}
async fn refused(config: Config) -> OpenError {
    match open(config).await {
        Ok(_) => panic!("the bus opens"),
        Err(error) => error,
    }
}
fn fresh() -> Config {
    let mut config = Config { prefix: NatsServer::prefix(), ..NatsServer::shared().config() };
    config.limits.events_bytes_max = 1 << 20;
    config
}

/// A server that says this of itself, and answers pings.
async fn pretender(info: &'static str) -> Config {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let url = format!("nats://{}", listener.local_addr().expect("a socket"));
    real(Handle::current()).spawn("pretender", async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (read, mut write) = socket.split();
            let mut lines = BufReader::new(read).lines();
            let _ = write.write_all(format!("INFO {info}\r\n").as_bytes()).await;
            while let Ok(Some(line)) = lines.next_line().await {
                if line.starts_with("PING") {
                    let _ = write.write_all(b"PONG\r\n").await;
                }
            }
        }
    });
    Config { answer_timeout: Duration::from_millis(300), ..Config::new(vec![url]) }
}

#[tokio::test]
async fn an_old_server_is_refused() {
    let config = pretender(
        r#"{"server_id":"x","version":"2.10.29","go":"go1","host":"127.0.0.1","port":1,"headers":true,"max_payload":8388608,"proto":1,"jetstream":true}"#,
    )
    .await;
    let error = refused(config).await;
    assert_eq!((error.code(), error.retryable()), ("nats_server_too_old", false));
    assert!(error.to_string().contains("2.10.29"), "{error}");
}

#[tokio::test]
async fn a_server_that_takes_only_small_messages_is_refused() {
    if left_out() {
        return;
    }
    let server = NatsServer::start_with("jetstream { store_dir: \"$STORE\" }\n");
    let error = refused(server.config()).await;
    assert_eq!(error.code(), "nats_max_payload");
    assert!(error.to_string().contains("max_payload: 8MB"), "it says what to set: {error}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() {
    if left_out() {
        return;
    }
    let server = NatsServer::start_with("max_payload: 8MB\n");
    let error = refused(server.config()).await;
    assert_eq!(error.code(), "nats_no_jetstream", "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_away_may_come() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://ann:swordfish@{}", listener.local_addr().unwrap());
    drop(listener);
    let error = refused(Config::new(vec![url])).await;
    assert_eq!((error.code(), error.retryable()), ("nats_unreachable", true));
    assert!(!error.to_string().contains("swordfish"), "{error}");
}

#[tokio::test]
async fn who_may_not_sign_in_is_told_so() {
    if left_out() {
        return;
    }
    let nkey = nkey_pair();
    let server = NatsServer::start_with(&format!(
        "max_payload: 8MB\njetstream {{ store_dir: \"$STORE\" }}\n\
         authorization {{ users: [ {{ user: ann, password: swordfish }}, {{ nkey: {} }} ] }}\n",
        nkey.0
    ));
    let user = |password: &str| Auth::User { user: "ann".to_owned(), password: Secret::new(password) };
    for auth in [Auth::None, user("carp"), Auth::Token(Secret::new("swordfish"))] {
        let error = refused(Config { auth, ..server.config() }).await;
        assert_eq!((error.code(), error.retryable()), ("nats_sign_in_refused", false));
        assert!(!format!("{error:?}").contains("carp"));
    }
    open(Config { auth: user("swordfish"), ..server.config() }).await.expect("the right password");
    open(Config { auth: Auth::Nkey(Secret::new(nkey.1)), ..server.config() }).await.expect("the right nkey");
    let error = refused(Config { auth: Auth::Credentials(Secret::new("nothing")), ..server.config() }).await;
    assert_eq!(error.code(), "nats_config_invalid");
}

/// An nkey of a user, and its seed. For tests only, and nowhere else of any use.
fn nkey_pair() -> (&'static str, &'static str) {
    (
        "UDSRS3BNEBI52OA65L5RFLBYX422SA7GAJ2NOYFSXBHCUL7BCYCAQ2A7",
        "SUADGM5KI2IFWKH7BRTOV4G6GD7IJ4TDFAOIJFTKFSOS7FNBYUDSY2YQAY",
    )
}

#[tokio::test]
async fn the_number_of_lanes_is_fixed() {
    if left_out() {
        return;
    }
    let config = fresh();
    open(config.clone()).await.expect("the first makes it");
    let error = refused(Config { lanes: 2, ..config.clone() }).await;
    assert!(matches!(error, OpenError::Lanes { stored: 4, wanted: 2 }), "{error:?}");
    open(config).await.expect("with what is stored it opens");
}

#[tokio::test]
async fn a_stream_of_somebody_else_is_left_alone() {
    if left_out() {
        return;
    }
    let config = fresh();
    let client = async_nats::connect(config.servers[0].as_str()).await.unwrap();
    let name = format!("{}_snapshots", config.prefix);
    let theirs = jetstream::stream::Config {
        name: name.clone(),
        subjects: vec![format!("{}.theirs.>", config.prefix)],
        ..jetstream::stream::Config::default()
    };
    jetstream::new(client).create_stream(theirs).await.unwrap();
    match refused(config.clone()).await {
        OpenError::Differs { stream, field, found, wanted, .. } => {
            assert_eq!((stream, field), (name, "subjects"));
            assert_eq!(found, format!("{}.theirs.>", config.prefix));
            assert_eq!(wanted, format!("{}.snapshot.>", config.prefix));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn more_replicas_than_servers_are_refused() {
    if left_out() {
        return;
    }
    let error = refused(Config { replicas: 3, ..fresh() }).await;
    assert_eq!((error.code(), error.retryable()), ("nats_refused", false), "{error:?}");
}

#[tokio::test]
async fn other_limits_are_set_and_other_ages_are_not() {
    if left_out() {
        return;
    }
    let config = fresh();
    open(config.clone()).await.expect("it opens");
    let mut other = config.clone();
    other.limits.events_keep = 77;
    other.limits.ingress_bytes_max = Some(10 << 20);
    open(other.clone()).await.expect("it opens with other limits");
    let client = async_nats::connect(config.servers[0].as_str()).await.unwrap();
    let context = jetstream::new(client);
    let limits = async |name: &str| {
        let stream = context.get_stream(format!("{}_{name}", config.prefix)).await.unwrap();
        let config = stream.cached_info().config.clone();
        (config.max_messages, config.max_bytes)
    };
    assert_eq!(limits("events").await, (77, 1 << 20));
    assert_eq!(limits("jobs").await, (-1, 10 << 20));
    let error = refused(Config { member_ttl_max: Duration::from_secs(7), ..other }).await;
    assert!(matches!(&error, OpenError::Differs { field: "max_age", .. }), "{error:?}");
}

#[tokio::test]
async fn of_many_that_start_at_once_all_open() {
    if left_out() {
        return;
    }
    let config = fresh();
    let opened = futures::future::join_all((0..8).map(|_| open(config.clone()))).await;
    for outcome in opened {
        outcome.expect("each opens");
    }
}

#[test]
fn every_code_has_a_page() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(root.join("src/nats/error.rs")).unwrap();
    let codes: Vec<&str> = source.split('"').filter(|text| text.starts_with("nats_")).collect();
    assert!(codes.len() >= 12, "{codes:?}");
    for code in codes {
        let page = root.join(format!("../ops/docs/errors/{code}.md"));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.starts_with(&format!("# {code}\n")) && text.contains("**What to do.**"), "{code}");
    }
}
