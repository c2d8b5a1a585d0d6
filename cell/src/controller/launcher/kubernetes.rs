//! Cells as the pods of a Deployment, whose size is set by its scale subresource.
//!
//! ```text
//!  wanted ──▶ read what the Deployment has ──▶ as wanted: done
//!                                        └──▶ patch it, on the version that was read: 409 if others wrote meanwhile
//! ```
//!
//! A write is made only after a read, and holds only for the version that was read. So one that was
//! overtaken, or whose answer was lost, is never made again: the next try reads, and writes the newest
//! wish or nothing.
//!
//! Pods are taken away one at a time. The pod of the youngest cell is marked, so that the Deployment
//! takes that one; its cell drains on SIGTERM. The next one goes when it has left.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::{Env, Mono};
use hyper::Response;
use hyper::header::{HeaderMap, RETRY_AFTER};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tower::util::MapResponseLayer;

use super::asking::{Ask, Asking};
use super::{Wanted, leaves_next};
use crate::config;

mod error;

pub use error::{CODES, Error};

/// How often what the Deployment has is read, whatever happens: pods leave one a turn, and a size that
/// somebody else has set is put right.
const READ_EVERY: Duration = Duration::from_secs(5);
/// How long a cell that was taken away may take to leave before the next one goes: longer than a drain.
const LEAVE_MAX: Duration = Duration::from_secs(90);
/// How long pods may be missing before that is said.
const PODS_LATE: Duration = Duration::from_secs(30);
/// Of two pods the one with the lower cost goes; without it, it is zero.
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Under this name its writes stand in `managedFields`.
const MANAGER: &str = "cellbus-controller";

struct Kubernetes {
    env: Env,
    config: config::scale::Kubernetes,
    state: Mutex<State>,
    /// Seconds for which the server wants to be left alone, as its last answer says.
    rest: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    /// Made anew after a failure that may lie in it.
    client: Option<(Client, String)>,
    /// When a pod was taken away last.
    taken: Option<Mono>,
    /// Since when pods have been missing.
    late: Option<Mono>,
}

/// Has the Deployment of `config` have as many pods as cells are wanted.
#[must_use]
pub fn start(env: Env, config: config::scale::Kubernetes) -> Arc<Asking> {
    Asking::start(env.clone(), Box::new(Kubernetes { env, config, state: Mutex::default(), rest: Arc::default() }))
}

#[async_trait]
impl Ask for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }
    fn every(&self) -> Duration {
        READ_EVERY
    }
    fn rest(&self) -> Duration {
        Duration::from_secs(self.rest.load(Ordering::Relaxed))
    }
    async fn ask(&self, wanted: &Wanted, _: bool) -> Result<Option<String>, String> {
        self.rest.store(0, Ordering::Relaxed);
        let limit = self.config.time_limit;
        let asked = self.env.timeout(limit, self.turn(wanted)).await.unwrap_or(Err(Error::NoAnswer { limit }));
        asked.map_err(|error| {
            if error.may_be_the_client() {
                self.state().client = None;
            }
            error.in_full()
        })
    }
}

impl Kubernetes {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One turn; what there is to be said of it.
    async fn turn(&self, wanted: &Wanted) -> Result<Option<String>, Error> {
        let (client, namespace) = self.client().await?;
        let (name, deployments) = (&self.config.deployment, Api::<Deployment>::namespaced(client.clone(), &namespace));
        let failed = |error| Error::of(error, format!("deployments/scale {namespace}/{name}"));
        let read = deployments.get_scale(name).await.map_err(failed)?;
        let has = size(&read);
        let cells: Vec<Member> = wanted.members.iter().filter(|member| member.role == Role::Cell).cloned().collect();
        let wanted = Wanted { desired: wanted.desired, members: cells };
        let (now, taken) = (self.env.mono(), self.state().taken);
        let next = next_size(has, &wanted, taken.is_some_and(|at| now.since(at) < LEAVE_MAX));
        if next == has {
            return Ok(self.missing(has, &read));
        }
        let mut unmarked = None;
        if next < has {
            // Which one goes is a wish; that one goes is not.
            unmarked = self.mark(&client, &namespace, next, &wanted).await.err().map(|error| error.in_full());
        }
        let version = read.metadata.resource_version.as_deref();
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": next}});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let patched = deployments.patch_scale(name, &params, &Patch::Merge(&patch)).await.map_err(failed)?;
        tracing::info!(deployment = %name, namespace, before = has, pods = size(&patched), "pods asked for");
        self.state().taken = if next < has { Some(now) } else { taken };
        Ok(unmarked.or_else(|| self.missing(next, &patched)))
    }

    /// The client, and the namespace that the Deployment is in.
    async fn client(&self) -> Result<(Client, String), Error> {
        if let Some(known) = self.state().client.clone() {
            return Ok(known);
        }
        let mut config = match &self.config.kubeconfig {
            None => kube::Config::incluster().map_err(Error::credentials)?,
            Some(file) => {
                let read = Kubeconfig::read_from(file).map_err(Error::credentials)?;
                let read = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
                read.map_err(Error::credentials)?
            }
        };
        // What fails is shown, and tried again here: from a new reading, with the newest wish, and no
        // sooner than the server says.
        config.default_retry = false;
        let rest = Arc::clone(&self.rest);
        let heed = MapResponseLayer::new(move |response: Response<_>| {
            rest.store(retry_after(response.headers()), Ordering::Relaxed);
            response
        });
        let namespace = match self.config.namespace.as_str() {
            "" => config.default_namespace.clone(),
            named => named.to_owned(),
        };
        let built = ClientBuilder::try_from(config).map_err(Error::credentials)?;
        let made = (built.with_layer(&heed).build(), namespace);
        self.state().client = Some(made.clone());
        Ok(made)
    }

    /// Makes the pod of the cell that should leave the cheapest, so that it is the one that goes.
    async fn mark(&self, client: &Client, namespace: &str, next: u32, wanted: &Wanted) -> Result<(), Error> {
        let wanted = Wanted { desired: next, members: wanted.members.clone() };
        let youngest = wanted.members.iter().find(|member| leaves_next(&wanted, |_| true) == Some(&member.cell));
        let Some(address) = youngest.and_then(|member| host(&member.address)) else { return Ok(()) };
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        let failed = |error| Error::of(error, format!("pods {namespace}"));
        let params = ListParams::default().fields(&format!("status.podIP={address}")).limit(2);
        let found = pods.list_metadata(&params).await.map_err(failed)?.items;
        // Of several in the network of one host nobody knows which it is.
        let [pod] = found.as_slice() else { return Ok(()) };
        let patch = Patch::Merge(json!({"metadata": {"annotations": {COST: "-1"}}}));
        pods.patch_metadata(&pod.name_any(), &PatchParams::default(), &patch).await.map_err(failed)?;
        Ok(())
    }

    /// Says so when pods that should be there have not been there for a while.
    fn missing(&self, wanted: u32, scale: &Scale) -> Option<String> {
        let there = scale.status.as_ref().map_or(0, |status| u32::try_from(status.replicas).unwrap_or(0));
        let (now, mut state) = (self.env.mono(), self.state());
        if there >= wanted {
            state.late = None;
            return None;
        }
        let since = *state.late.get_or_insert(now);
        let name = &self.config.deployment;
        (now.since(since) >= PODS_LATE).then(|| {
            format!("the Deployment {name} has {there} of {wanted} pods: `kubectl describe replicaset` says what keeps the others")
        })
    }
}

/// Seconds; an API server names no dates.
fn retry_after(headers: &HeaderMap) -> u64 {
    let named = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    named.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0)
}

/// Pods that the Deployment is to have; zero is not written out.
fn size(scale: &Scale) -> u32 {
    let replicas = scale.spec.as_ref().and_then(|spec| spec.replicas);
    replicas.map_or(0, |replicas| u32::try_from(replicas).unwrap_or(0))
}

/// How many pods there are to be next: all that are wanted at once, but one fewer at a time, and none
/// fewer while one that was `just_taken` has not left.
fn next_size(has: u32, wanted: &Wanted, just_taken: bool) -> u32 {
    if wanted.desired >= has {
        return wanted.desired;
    }
    let of = |state| wanted.members.iter().filter(|member| member.state == state).count();
    let leaving = of(MemberState::Draining) > 0 || (just_taken && of(MemberState::Active) > has as usize);
    if leaving { has } else { has - 1 }
}

/// The address of a member's process, without scheme and port.
fn host(address: &str) -> Option<String> {
    let uri: hyper::Uri = address.parse().ok()?;
    Some(uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellbus_bus::WallMs;
    use cellbus_bus::format::Build;

    fn wanted(desired: u32, active: usize, draining: usize) -> Wanted {
        let states = [vec![MemberState::Active; active], vec![MemberState::Draining; draining]].concat();
        let member = |(k, state)| Member {
            cell: format!("cell-{k}").parse().unwrap(),
            role: Role::Cell,
            address: format!("https://10.0.0.{k}:7070"),
            state,
            joined_at: WallMs(k as u64),
            beat: 1,
            build: Build::current(),
        };
        Wanted { desired, members: states.into_iter().enumerate().map(member).collect() }
    }

    #[test]
    fn pods_come_at_once_and_go_one_by_one() {
        assert_eq!(next_size(2, &wanted(9, 2, 0), false), 9);
        assert_eq!(next_size(9, &wanted(2, 9, 0), false), 8);
        assert_eq!(next_size(8, &wanted(2, 9, 0), true), 8, "the one that goes still works");
        assert_eq!(next_size(8, &wanted(2, 8, 1), true), 8, "it drains");
        assert_eq!(next_size(8, &wanted(2, 8, 0), true), 7, "it has left");
        assert_eq!(next_size(8, &wanted(2, 9, 0), false), 7, "what never leaves is not waited for");
        assert_eq!(next_size(8, &wanted(2, 3, 0), false), 7, "pods that never came are the first to go");
        assert_eq!(next_size(1, &wanted(0, 1, 0), false), 0);
    }

    #[test]
    fn a_member_has_the_address_of_its_pod() {
        assert_eq!(host("https://10.1.2.3:7070").unwrap(), "10.1.2.3");
        assert_eq!(host("http://[fd00::7]:7070").unwrap(), "fd00::7");
        assert_eq!(host(""), None);
    }
}
