//! Launchers with real processes: they do what is wanted, start again what dies, and say what fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::Duration;

use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::format::Build;
use cellbus_bus::{Env, WallMs, env};
use cellbus_cell::controller::launcher::{Launcher, ProcessLauncher, Wanted, command};

#[path = "support/until.rs"]
mod until;

use until::until;

fn shell(script: String) -> Vec<String> {
    vec!["sh".to_owned(), "-c".to_owned(), script]
}

fn wanted(desired: u32) -> Wanted {
    Wanted { desired, members: Vec::new() }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn real() -> Env {
    env::real(tokio::runtime::Handle::current())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_told_again_until_it_succeeds() {
    let (env, dir) = (real(), tempfile::tempdir().unwrap());
    let (told, sound) = (dir.path().join("told"), dir.path().join("sound"));
    let script = format!(
        "test -e {} || {{ echo the quota is used up >&2; exit 3; }}; echo {{desired}} >> {}",
        sound.display(),
        told.display()
    );
    let launcher = command::start(env.clone(), shell(script), Duration::from_secs(20));
    launcher.want(wanted(4));
    let trouble = until(&env, "it fails", || launcher.trouble(), Option::is_some).await.unwrap();
    assert!(trouble.contains("exit status: 3") && trouble.contains("the quota is used up"), "{trouble}");
    launcher.want(wanted(6));
    std::fs::write(&sound, "").unwrap();
    until(&env, "it is told the newest", || lines(&told), |lines| !lines.is_empty()).await;
    until(&env, "all is well", || launcher.trouble(), Option::is_none).await;
    // The same again is not told again.
    (0..50).for_each(|_| launcher.want(wanted(6)));
    launcher.want(wanted(2));
    let lines = until(&env, "it is told of two", || lines(&told), |lines| lines.last().is_some_and(|l| l == "2")).await;
    assert_eq!(lines, ["6", "2"]);
    launcher.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_hangs_or_floods_is_bounded() {
    let env = real();
    let hangs = command::start(env.clone(), shell("sleep 600 # {desired}".to_owned()), Duration::from_millis(300));
    hangs.want(wanted(1));
    let trouble = until(&env, "it hangs", || hangs.trouble(), Option::is_some).await.unwrap();
    assert!(trouble.contains("took longer than 0.3 s"), "{trouble}");

    let flood = "head -c 3000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero | tr '\\0' y >&2; exit 1".to_owned();
    let floods = command::start(env.clone(), shell(flood), Duration::from_secs(30));
    floods.want(wanted(1));
    let trouble = until(&env, "it floods", || floods.trouble(), Option::is_some).await.unwrap();
    assert!(trouble.contains("yyy") && trouble.len() < 5_000, "{} bytes", trouble.len());

    let none = command::start(env.clone(), vec!["/nowhere/scale".to_owned()], Duration::from_secs(1));
    none.want(wanted(1));
    let trouble = until(&env, "it is not there", || none.trouble(), Option::is_some).await.unwrap();
    assert!(trouble.contains("/nowhere/scale cannot be started"), "{trouble}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_come_and_go_and_are_started_again_when_they_die() {
    let (env, dir) = (real(), tempfile::tempdir().unwrap());
    let pids = dir.path().join("pids");
    let launcher = ProcessLauncher::start(env.clone(), shell(format!("echo $$ >> {}; exec sleep 600", pids.display())));
    launcher.want(wanted(3));
    let started = until(&env, "three run", || lines(&pids), |lines| lines.len() == 3).await;
    let pid = rustix::process::Pid::from_raw(started[0].parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until(&env, "the dead one comes back", || lines(&pids), |lines| lines.len() == 4).await;
    let all = |count| move |running: &usize| *running == count;
    until(&env, "three run", || launcher.running(), all(3)).await;
    until(&env, "all is well", || launcher.trouble(), Option::is_none).await;
    launcher.want(wanted(1));
    until(&env, "one is left", || launcher.running(), all(1)).await;
    launcher.stop().await;
    assert_eq!(launcher.running(), 0);
    for pid in lines(&pids) {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} still runs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_children_of_a_controller_that_was_killed_count() {
    let (env, dir) = (real(), tempfile::tempdir().unwrap());
    let starts = dir.path().join("starts");
    let launcher =
        ProcessLauncher::start(env.clone(), shell(format!("echo x >> {}; exec sleep 600", starts.display())));
    let cell = |id: &str, joined_at| Member {
        cell: id.parse().unwrap(),
        role: Role::Cell,
        address: String::new(),
        state: MemberState::Active,
        joined_at,
        beat: 1,
        build: Build::current(),
    };
    let mut members = vec![cell("a", WallMs(1)), cell("b", WallMs(2))];
    launcher.want(Wanted { desired: 3, members: members.clone() });
    until(&env, "one is started", || launcher.running(), |running| *running == 1).await;
    // What joins later is its own.
    members.push(cell("c", WallMs(env.wall().0 + 1)));
    launcher.want(Wanted { desired: 4, members: members.clone() });
    until(&env, "one more is started", || launcher.running(), |running| *running == 2).await;
    launcher.want(Wanted { desired: 1, members });
    until(&env, "its own leave", || launcher.running(), |running| *running == 0).await;
    assert!(launcher.trouble().unwrap().starts_with("too many cells by 1"), "{:?}", launcher.trouble());
    assert_eq!(lines(&starts).len(), 2);
    launcher.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_that_die_at_once_are_not_started_in_a_rush() {
    let (env, dir) = (real(), tempfile::tempdir().unwrap());
    let starts = dir.path().join("starts");
    let launcher = ProcessLauncher::start(env.clone(), shell(format!("echo x >> {}; exit 7", starts.display())));
    launcher.want(wanted(1));
    let trouble = until(&env, "it dies", || launcher.trouble(), Option::is_some).await.unwrap();
    assert!(trouble.contains("exit status: 7"), "{trouble}");
    let began = env.mono();
    // Pauses of 0.5, 1, 2, 4 s: the fourth start is after 3.5 s at the earliest.
    until(&env, "it is tried again", || lines(&starts), |lines| lines.len() >= 4).await;
    assert!(env.mono().since(began) > Duration::from_secs(3));
    launcher.stop().await;
}
