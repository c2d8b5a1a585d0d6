//! Topics: made where they are missing, checked where they are there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataTopic;

use crate::contract::{Error, Result};
use crate::env::Env;

use super::client::Context;
use super::config::Config;
use super::error::OpenError;
use super::layout::{Layout, Topic};
use super::{Shared, answer};

/// Settings of topics that must be as they were meant. Of the others an operator may know better.
const MUST_BE: [&str; 3] = ["cleanup.policy", "retention.ms", "retention.bytes"];

/// Between two looks at topics that were just made.
pub(super) const LOOK: Duration = Duration::from_millis(25);

/// Whether an error passes by itself: not all brokers, nor this client, have heard of a topic yet.
pub(super) fn comes_soon(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownPartition
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
    )
}

/// Topics of tenants that are known to be there.
#[derive(Default)]
pub(super) struct Known(Mutex<BTreeSet<Arc<str>>>);

fn options(config: &Config) -> AdminOptions {
    // A broker that has just started takes its time.
    AdminOptions::new().request_timeout(Some(config.connect_timeout)).operation_timeout(Some(config.connect_timeout))
}

/// Partitions of a topic.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Partitions {
    all: usize,
    /// Those that have a leader.
    led: usize,
}

/// What is there: the topics of this prefix.
pub(super) async fn found(
    admin: &Arc<AdminClient<Context>>,
    config: &Config,
    env: &Env,
) -> std::result::Result<BTreeMap<String, Partitions>, OpenError> {
    let (client, timeout) = (Arc::clone(admin), config.connect_timeout);
    let metadata = env.blocking("kafka metadata", move || client.inner().fetch_metadata(None, timeout)).await;
    let metadata = match metadata {
        Some(Ok(metadata)) => {
            admin.inner().context().heard.forget();
            metadata
        }
        Some(Err(error)) => return Err(unreachable(admin, config, &error)),
        None => return Err(unreachable(admin, config, &KafkaError::Canceled)),
    };
    let ours = format!("{}.", config.prefix);
    let topics = metadata.topics().iter().filter(|topic| topic.name().starts_with(&ours) && topic.error().is_none());
    let partitions = |topic: &MetadataTopic| Partitions {
        all: topic.partitions().len(),
        led: topic.partitions().iter().filter(|partition| partition.leader() >= 0).count(),
    };
    Ok(topics.map(|topic| (topic.name().to_owned(), partitions(topic))).collect())
}

/// No answer to the first question. What was heard meanwhile tells why.
fn unreachable(admin: &Arc<AdminClient<Context>>, config: &Config, error: &KafkaError) -> OpenError {
    let heard = admin.inner().context().heard.last();
    let reason = match &heard {
        Some((_, reason)) => reason.clone(),
        None => error.to_string(),
    };
    match heard.map(|(code, _)| code) {
        Some(Code::Authentication | Code::SaslAuthenticationFailed) => OpenError::SignIn { reason },
        Some(Code::SSL) => OpenError::Tls { reason },
        Some(Code::BrokerTransportFailure) if super::client::is_tls(&reason) => OpenError::Tls { reason },
        _ => OpenError::Unreachable { brokers: config.brokers.join(", "), reason },
    }
}

/// Makes what is missing, and checks what is there.
pub(super) async fn prepare(
    admin: &Arc<AdminClient<Context>>,
    config: &Config,
    layout: &Layout,
    env: &Env,
) -> std::result::Result<(), OpenError> {
    let there = found(admin, config, env).await?;
    let topics = layout.topics(config);
    let (old, new): (Vec<&Topic>, Vec<&Topic>) = topics.iter().partition(|topic| there.contains_key(&*topic.name));
    for topic in &old {
        let partitions = there.get(&*topic.name).map_or(0, |partitions| partitions.all);
        if partitions != usize::from(topic.partitions) {
            return Err(OpenError::Differs {
                topic: topic.name.to_string(),
                field: "partitions",
                found: partitions.to_string(),
                wanted: topic.partitions.to_string(),
                remedy: "configure the number of shards that this cluster was made with",
            });
        }
    }
    for topic in &new {
        make(admin, config, topic).await?;
    }
    settings(admin, config, &old, env).await?;
    if new.is_empty() {
        return Ok(());
    }
    // Made is not yet known to all.
    let began = env.mono();
    loop {
        let there = found(admin, config, env).await?;
        let led = |topic: &Topic| there.get(&*topic.name).map_or(0, |partitions| partitions.led);
        let missing = new.iter().find(|topic| led(topic) != usize::from(topic.partitions));
        match missing {
            None => return Ok(()),
            Some(topic) if env.mono().since(began) >= config.connect_timeout => {
                let doing = format!("to make the topic {}", topic.name);
                return Err(OpenError::NoAnswer { doing, reason: "its partitions have no leaders".to_owned() });
            }
            Some(_) => env.sleep(LOOK).await,
        }
    }
}

/// Makes a topic; one that somebody else makes at the same time is as good.
async fn make(admin: &AdminClient<Context>, config: &Config, topic: &Topic) -> std::result::Result<(), OpenError> {
    let doing = format!("to make the topic {}", topic.name);
    let replication = TopicReplication::Fixed(i32::from(config.replicas));
    let mut new = NewTopic::new(&topic.name, i32::from(topic.partitions), replication);
    for (name, value) in &topic.settings {
        new = new.set(name, value);
    }
    let made = admin.create_topics([&new], &options(config)).await;
    let made = made.map_err(|error| OpenError::request(&doing, error.rdkafka_error_code(), error.to_string()))?;
    for outcome in made {
        match outcome {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((_, code)) => {
                return Err(OpenError::request(&doing, Some(code), answer::describe_code(&doing, code)));
            }
        }
    }
    Ok(())
}

/// Whether topics that were there keep what they hold for as long as they must.
async fn settings(
    admin: &AdminClient<Context>,
    config: &Config,
    topics: &[&Topic],
    env: &Env,
) -> std::result::Result<(), OpenError> {
    if topics.is_empty() {
        return Ok(());
    }
    let doing = "to tell the settings of topics";
    let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
    let began = env.mono();
    let told = loop {
        let told = admin.describe_configs(&asked, &options(config)).await;
        let told = told.map_err(|error| OpenError::request(doing, error.rdkafka_error_code(), error.to_string()))?;
        // A topic that another process has just made, and that this broker has not heard of.
        let late = told.iter().any(|one| one.as_ref().is_err_and(|code| comes_soon(*code)));
        if !late || env.mono().since(began) >= config.connect_timeout {
            break told;
        }
        env.sleep(LOOK).await;
    };
    for resource in told {
        let resource = match resource {
            Ok(resource) => resource,
            // An operator may forbid to ask; then what was made is trusted.
            Err(Code::TopicAuthorizationFailed) => continue,
            Err(code) => return Err(OpenError::request(doing, Some(code), answer::describe_code(doing, code))),
        };
        let named = |topic: &&&Topic| resource.specifier == OwnedResourceSpecifier::Topic(topic.name.to_string());
        let Some(topic) = topics.iter().find(named) else { continue };
        let too_small = |name: &str, wanted: &str, found: &str| {
            name == "max.message.bytes" && found.parse::<u64>().ok() < wanted.parse::<u64>().ok()
        };
        for (name, wanted) in &topic.settings {
            let found = resource.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
            let limits_of_events = topic.name.ends_with(".events") && *name != "cleanup.policy";
            let differs = MUST_BE.contains(name) && found != *wanted && !limits_of_events;
            if differs || too_small(name, wanted, &found) {
                return Err(OpenError::Differs {
                    topic: topic.name.to_string(),
                    field: name,
                    found,
                    wanted: wanted.clone(),
                    remedy: "set it with kafka-configs.sh, or what is in the topic may be lost",
                });
            }
        }
    }
    Ok(())
}

/// The number of shards of a cluster that is there.
pub(super) async fn shards(
    admin: &Arc<AdminClient<Context>>,
    config: &Config,
    layout: &Layout,
    env: &Env,
) -> std::result::Result<u16, OpenError> {
    let there = found(admin, config, env).await?;
    let topics = layout.topics(config);
    let mut shards = 0;
    for topic in &topics {
        let Some(partitions) = there.get(&*topic.name) else {
            return Err(OpenError::NoCluster { topic: topic.name.to_string() });
        };
        shards = shards.max(u16::try_from(partitions.all).unwrap_or(u16::MAX));
    }
    Ok(shards)
}

impl Shared {
    /// Makes sure that a tenant's topic is there.
    pub(super) async fn tenant_topic(&self, topic: Topic) -> Result<Arc<str>> {
        let known = |known: &Known| {
            let known = known.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.contains(&topic.name)
        };
        if !known(&self.known) {
            make(&self.admin, &self.config, &topic)
                .await
                .map_err(|error| Error::Unavailable { reason: format!("{}: {error}", error.code()) })?;
            self.known.0.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&topic.name));
        }
        Ok(topic.name)
    }
}
