//! What is checked and made at start: the server, the streams, the record of the layout.

use async_nats::Client;
use async_nats::error::Error;
use async_nats::jetstream::context::{AccountErrorKind, CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config as StreamConfig, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use serde::{Deserialize, Serialize};

use super::PAYLOAD_BYTES_MIN;
use super::answer;
use super::config::Config;
use super::error::OpenError;
use super::layout::{LAYOUT, Layout};

/// The key of the record of the layout.
const LAYOUT_KEY: &str = "layout";

/// JetStream is off: for the server, for the account.
const NOT_ENABLED: [ErrorCode; 2] = [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT];
/// A cluster without a leader for now.
const ELECTING: [ErrorCode; 4] = [
    ErrorCode::CLUSTER_NOT_AVAILABLE,
    ErrorCode::CLUSTER_NOT_LEADER,
    ErrorCode::CLUSTER_NOT_ACTIVE,
    ErrorCode::CLUSTER_NOT_ASSIGNED,
];

/// What a cluster was made with. JSON, so that people and other builds can read it.
#[derive(Serialize, Deserialize)]
struct Stored {
    layout: u32,
    lanes: u16,
}

/// Everything, in an order in which a refusal leaves nothing behind that another start would trip over.
pub(super) async fn prepare(
    config: &Config,
    layout: &Layout,
    client: &Client,
    jetstream: &Context,
) -> Result<(), OpenError> {
    let allowed = server(client, jetstream).await?;
    let (mut others, mut buckets) = (layout.streams(config), layout.buckets(config));
    for stream in &mut others {
        stream.max_consumers = stream.max_consumers.min(allowed);
    }
    let state = buckets.pop().expect("the bucket of state is the last");
    others.append(&mut buckets);
    stream(client, jetstream, state, &[]).await?;
    record(config, layout, jetstream).await?;
    let made = others.into_iter().map(|wanted| {
        let adjustable: &[Field] = if wanted.name == layout.events() { &[Field::Messages, Field::Age] } else { &[] };
        stream(client, jetstream, wanted, adjustable)
    });
    futures::future::try_join_all(made).await.map(drop)
}

/// Checks that everything is there, and gives the number of lanes.
pub(super) async fn found(layout: &Layout, client: &Client, jetstream: &Context) -> Result<u16, OpenError> {
    server(client, jetstream).await.map(drop)?;
    let none = || OpenError::NoCluster { stream: layout.ingress() };
    if find(jetstream, &layout.ingress()).await?.is_none() {
        return Err(none());
    }
    stored(layout, jetstream).await.map(|stored| stored.lanes)
}

/// Gives how many readers of one stream its account allows.
async fn server(client: &Client, jetstream: &Context) -> Result<i32, OpenError> {
    let info = client.server_info();
    if !client.is_server_compatible(2, 11, 0) {
        return Err(OpenError::TooOld { found: info.version });
    }
    if info.max_payload < PAYLOAD_BYTES_MIN {
        return Err(OpenError::MaxPayload { found: info.max_payload });
    }
    match jetstream.query_account().await {
        Ok(account) => Ok(match account.limits.max_consumers {
            Some(limit @ 1..) => i32::try_from(limit).unwrap_or(i32::MAX),
            Some(_) | None => i32::MAX,
        }),
        Err(error) => {
            let off = match error.kind() {
                AccountErrorKind::JetStream(said) => NOT_ENABLED.contains(&said.error_code()),
                AccountErrorKind::JetStreamUnavailable | AccountErrorKind::TimedOut | AccountErrorKind::Other => false,
            };
            let source = Box::new(error);
            if off || !info.jetstream {
                return Err(OpenError::NoJetStream { source });
            }
            // A cluster that is electing a leader answers nothing, or that it is not available.
            Err(OpenError::NoAnswer { doing: "the question about its account".to_owned(), source })
        }
    }
}

/// The record of the layout, written by whoever comes first.
async fn record(config: &Config, layout: &Layout, jetstream: &Context) -> Result<(), OpenError> {
    let wanted = Stored { layout: LAYOUT, lanes: config.lanes };
    let subject = layout.state_subject(LAYOUT_KEY);
    let body = serde_json::to_vec(&wanted).expect("two numbers are JSON");
    let message =
        async_nats::jetstream::message::PublishMessage::build().expected_last_subject_sequence(0).payload(body.into());
    let doing = "the record of the layout";
    let sent = jetstream.send_publish(subject.clone(), message).await;
    let written = match sent {
        Ok(ack) => ack.await.map(drop),
        Err(error) => Err(error),
    };
    match written {
        Ok(()) => return Ok(()),
        Err(error) if answer::is_wrong_last(&error) => {}
        Err(error) => return Err(OpenError::NoAnswer { doing: doing.to_owned(), source: Box::new(error) }),
    }
    let stored = stored(layout, jetstream).await?;
    if stored.lanes != config.lanes {
        return Err(OpenError::Lanes { stored: stored.lanes, wanted: config.lanes });
    }
    Ok(())
}

/// The record that is there, of a layout that this build knows.
async fn stored(layout: &Layout, jetstream: &Context) -> Result<Stored, OpenError> {
    let subject = layout.state_subject(LAYOUT_KEY);
    let doing = "the record of the layout";
    let bucket = format!("KV_{}", layout.state());
    let no_answer = |source: super::error::Source| OpenError::NoAnswer { doing: doing.to_owned(), source };
    let stream = jetstream.get_stream_no_info(bucket).await.map_err(|error| no_answer(Box::new(error)))?;
    let found = stream.get_last_raw_message_by_subject(&subject).await.map_err(|error| match error.kind() {
        LastRawMessageErrorKind::JetStream(said) => {
            OpenError::Refused { doing: doing.to_owned(), reason: said.to_string() }
        }
        LastRawMessageErrorKind::NoMessageFound
        | LastRawMessageErrorKind::InvalidSubject
        | LastRawMessageErrorKind::Other => no_answer(Box::new(error)),
    })?;
    let stored: Stored = serde_json::from_slice(&found.payload).map_err(|error| OpenError::Refused {
        doing: doing.to_owned(),
        reason: format!("it cannot be read ({error})"),
    })?;
    if stored.layout > LAYOUT {
        return Err(OpenError::NewerLayout { found: stored.layout });
    }
    Ok(stored)
}

/// What may be different and is then set to what is configured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Subjects,
    Retention,
    Discard,
    Storage,
    Replicas,
    Messages,
    MessagesPerSubject,
    Age,
}

impl Field {
    const ALL: [Self; 8] = [
        Self::Subjects,
        Self::Retention,
        Self::Discard,
        Self::Storage,
        Self::Replicas,
        Self::Messages,
        Self::MessagesPerSubject,
        Self::Age,
    ];
    /// As the server's own tools call it.
    fn name(self) -> &'static str {
        match self {
            Self::Subjects => "subjects",
            Self::Retention => "retention",
            Self::Discard => "discard",
            Self::Storage => "storage",
            Self::Replicas => "num_replicas",
            Self::Messages => "max_msgs",
            Self::MessagesPerSubject => "max_msgs_per_subject",
            Self::Age => "max_age",
        }
    }
    fn of(self, config: &StreamConfig) -> String {
        match self {
            Self::Subjects => config.subjects.join(","),
            Self::Retention => format!("{:?}", config.retention).to_lowercase(),
            Self::Discard => format!("{:?}", config.discard).to_lowercase(),
            Self::Storage => format!("{:?}", config.storage).to_lowercase(),
            Self::Replicas => config.num_replicas.to_string(),
            Self::Messages => unlimited(config.max_messages),
            Self::MessagesPerSubject => unlimited(config.max_messages_per_subject),
            Self::Age if config.max_age.is_zero() => "unlimited".to_owned(),
            Self::Age => format!("{:?}", config.max_age),
        }
    }
    fn remedy(self) -> &'static str {
        match self {
            Self::Replicas => "configure what is there, or change it with `nats stream edit --replicas`",
            Self::Age => "give every process the same configuration, or change it with `nats stream edit`",
            Self::Subjects
            | Self::Retention
            | Self::Discard
            | Self::Storage
            | Self::Messages
            | Self::MessagesPerSubject => {
                "somebody else has made or changed it: change it back, or configure another prefix"
            }
        }
    }
}

/// The server says -1 for none, and some versions 0.
fn unlimited(limit: i64) -> String {
    if limit <= 0 { "unlimited".to_owned() } else { limit.to_string() }
}

/// Whether a stream has fewer readers than wanted because nobody has said how many, as servers have it from 2.15 on.
/// Before, none is any number, and cannot be changed.
fn has_few_readers(client: &Client, found: &StreamConfig, wanted: &StreamConfig) -> bool {
    found.max_consumers < 1 && wanted.max_consumers > 0 && client.is_server_compatible(2, 15, 0)
}

/// Makes it. An account may have limits of readers that it does not say (tiers), which then hold.
async fn make(jetstream: &Context, wanted: &StreamConfig) -> Result<Stream, CreateStreamError> {
    let made = jetstream.create_stream(wanted.clone()).await;
    match made.as_ref().map_err(Error::kind) {
        Err(CreateStreamErrorKind::JetStream(said)) if said.error_code() == ErrorCode::MAXIMUM_CONSUMERS_LIMIT => {
            tracing::warn!(stream = wanted.name, wanted = wanted.max_consumers, "the account allows fewer readers");
            jetstream.create_stream(StreamConfig { max_consumers: -1, ..wanted.clone() }).await
        }
        Ok(_) | Err(_) => made,
    }
}

/// Lets a stream have so many readers that an older build has made. It goes without: a small cluster needs no more
/// than a server's default, and an account's own limit holds.
async fn allow_readers(jetstream: &Context, found: StreamConfig, readers: i32) -> StreamConfig {
    let changed = StreamConfig { max_consumers: readers, ..found.clone() };
    match jetstream.update_stream(changed.clone()).await {
        Ok(_) => changed,
        Err(error) => {
            tracing::warn!(stream = found.name, %error, readers, "the stream does not get more readers");
            found
        }
    }
}

/// Makes the stream, or checks the one that is there. What is a matter of size is set as configured.
async fn stream(
    client: &Client,
    jetstream: &Context,
    wanted: StreamConfig,
    adjustable: &[Field],
) -> Result<(), OpenError> {
    let found = match find(jetstream, &wanted.name).await? {
        Some(found) => found,
        None => match make(jetstream, &wanted).await {
            Ok(made) => made.cached_info().config.clone(),
            Err(error) => match error.kind() {
                // Another process was faster, with another configuration.
                CreateStreamErrorKind::JetStream(said) if said.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                    find(jetstream, &wanted.name).await?.unwrap_or_else(|| wanted.clone())
                }
                CreateStreamErrorKind::JetStream(said) if !ELECTING.contains(&said.error_code()) => {
                    return Err(OpenError::Refused {
                        doing: format!("to make the stream {}", wanted.name),
                        reason: said.to_string(),
                    });
                }
                CreateStreamErrorKind::JetStream(_)
                | CreateStreamErrorKind::EmptyStreamName
                | CreateStreamErrorKind::InvalidStreamName
                | CreateStreamErrorKind::DomainAndExternalSet
                | CreateStreamErrorKind::JetStreamUnavailable
                | CreateStreamErrorKind::TimedOut
                | CreateStreamErrorKind::Response
                | CreateStreamErrorKind::NotFound
                | CreateStreamErrorKind::ResponseParse => {
                    return Err(OpenError::NoAnswer {
                        doing: format!("the request for the stream {}", wanted.name),
                        source: Box::new(error),
                    });
                }
            },
        },
    };
    for field in Field::ALL {
        if field.of(&found) != field.of(&wanted) && !adjustable.contains(&field) {
            return Err(OpenError::Differs {
                stream: wanted.name.clone(),
                field: field.name(),
                found: field.of(&found),
                wanted: field.of(&wanted),
                remedy: field.remedy(),
            });
        }
    }
    let same_size = unlimited(found.max_bytes) == unlimited(wanted.max_bytes);
    let found = if has_few_readers(client, &found, &wanted) {
        allow_readers(jetstream, found, wanted.max_consumers).await
    } else {
        found
    };
    if same_size && adjustable.iter().all(|field| field.of(&found) == field.of(&wanted)) {
        return Ok(());
    }
    tracing::info!(stream = wanted.name, "the stream's limits are set as configured");
    let changed = StreamConfig {
        max_bytes: wanted.max_bytes,
        max_messages: wanted.max_messages,
        max_age: wanted.max_age,
        ..found
    };
    let doing = format!("other limits for the stream {}", wanted.name);
    match jetstream.update_stream(changed).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            CreateStreamErrorKind::JetStream(said) => Err(OpenError::Refused { doing, reason: said.to_string() }),
            _ => Err(OpenError::NoAnswer { doing, source: Box::new(error) }),
        },
    }
}

async fn find(jetstream: &Context, name: &str) -> Result<Option<StreamConfig>, OpenError> {
    match jetstream.get_stream(name).await {
        Ok(found) => Ok(Some(found.cached_info().config.clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(said) if said.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            GetStreamErrorKind::JetStream(said) if !ELECTING.contains(&said.error_code()) => {
                Err(OpenError::Refused { doing: format!("to tell of the stream {name}"), reason: said.to_string() })
            }
            GetStreamErrorKind::JetStream(_)
            | GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::InvalidStreamName => Err(OpenError::NoAnswer {
                doing: format!("the question for the stream {name}"),
                source: Box::new(error),
            }),
        },
    }
}
