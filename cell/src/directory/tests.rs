use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::env::{self, WallMs};
use cellbus_bus::format::Build;
use cellbus_directory::replica::ListError;

use super::*;
use crate::peers::{CallError, Peer, Peers, Post, Request, Response};

/// Replicas by name; those that are not there do not answer.
#[derive(Default)]
struct Replicas {
    answers: Mutex<BTreeMap<String, Answer>>,
    asked: Mutex<Vec<String>>,
}

impl Replicas {
    fn set(&self, name: &str, answer: Option<Answer>) {
        let mut answers = self.answers.lock().unwrap();
        match answer {
            Some(answer) => answers.insert(name.to_owned(), answer),
            None => answers.remove(name),
        };
    }
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

#[async_trait]
impl Peers for Replicas {
    async fn call(&self, to: &Peer, _: Request) -> Result<Response, CallError> {
        self.asked.lock().unwrap().push(to.cell.to_string());
        match self.answers.lock().unwrap().get(to.cell.as_str()) {
            Some(answer) => Ok(Response::Directory(Box::new(answer.clone()))),
            None => Err(CallError::NotDelivered { cell: to.cell.clone(), detail: "gone".to_owned() }),
        }
    }
    fn post(&self, to: &Peer, _: Post) -> Result<(), CallError> {
        Err(CallError::NotDelivered { cell: to.cell.clone(), detail: "nobody posts to it".to_owned() })
    }
}

fn member(name: &str, role: Role) -> Member {
    Member {
        cell: name.parse().unwrap(),
        role,
        address: format!("http://{name}"),
        state: MemberState::Active,
        joined_at: WallMs(0),
        beat: 1,
        build: Build::current(),
    }
}

fn yes() -> Option<Answer> {
    Some(Answer::Shows(vec![true]))
}

async fn shows(directory: &Directory) -> Result<Vec<bool>> {
    directory.shows(vec![Vec::new()], Fresh::AsItIs, Duration::ZERO).await
}

#[tokio::test]
async fn the_replica_that_answers_is_asked_again_and_another_when_it_cannot() {
    let replicas = Arc::new(Replicas::default());
    let elsewhere = Elsewhere::new(env::real(tokio::runtime::Handle::current()), replicas.clone());
    let directory = Directory::Elsewhere(elsewhere);
    let Directory::Elsewhere(elsewhere) = &directory else { unreachable!() };

    // Nobody is known: it says what to do.
    let error = shows(&directory).await.unwrap_err();
    assert!(error.code() == "not_ready" && error.to_string().contains("cellbus directory"), "{error}");

    // Cells are no directories.
    elsewhere.learn(&[member("cell-1", Role::Cell), member("d-1", Role::Directory), member("d-2", Role::Directory)]);
    replicas.set("d-1", yes());
    replicas.set("d-2", yes());
    assert_eq!(shows(&directory).await.unwrap(), [true]);
    let first = replicas.asked();
    assert_eq!(first.len(), 1);
    for _ in 0..20 {
        shows(&directory).await.unwrap();
        assert_eq!(replicas.asked(), first);
    }

    // One that loads, or is gone, is left for the other, which is then asked first.
    let (one, two) = if first == ["d-1"] { ("d-1", "d-2") } else { ("d-2", "d-1") };
    replicas.set(one, Some(Answer::NotReady { reason: "it still reads the logs".to_owned() }));
    assert_eq!(shows(&directory).await.unwrap(), [true]);
    assert_eq!(replicas.asked(), [one, two]);
    replicas.set(one, yes());
    assert_eq!(shows(&directory).await.unwrap(), [true]);
    assert_eq!(replicas.asked(), [two]);
    replicas.set(two, None);
    assert_eq!(shows(&directory).await.unwrap(), [true]);
    assert_eq!(replicas.asked(), [two, one]);

    // A refusal is an answer: another one would say the same.
    replicas.set(one, Some(Answer::Refused(ListError::Cursor)));
    assert_eq!(shows(&directory).await.unwrap_err().code(), "invalid_cursor");
    assert_eq!(replicas.asked(), [one]);
    // Another answer than was asked for, or for another number of things, is none.
    replicas.set(one, Some(Answer::Shows(Vec::new())));
    assert_eq!(shows(&directory).await.unwrap_err().code(), "internal");
    replicas.set(one, None);
    assert_eq!(shows(&directory).await.unwrap_err().code(), "not_ready");
}

#[test]
fn a_loss_is_counted_where_there_is_no_replica() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let elsewhere = Elsewhere::new(env::real(runtime.handle().clone()), Arc::new(Replicas::default()));
    let directory = Directory::Elsewhere(elsewhere);
    directory.note_loss(ShardId::of_cluster(cellbus_bus::ids::ShardCount::new(4).unwrap()));
    assert_eq!(directory.losses(), 1);
}
