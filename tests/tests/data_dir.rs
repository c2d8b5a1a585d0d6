//! What a data directory may do to a start: be in use, damaged, not writable, nearly full.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cellbus_tests::process::{Server, event};
use cellbus_tests::workspace::all_files;
use serde_json::{Value, json};

const SMALL: &[&str] = &["--cells", "1", "--hosts", "8", "--managers", "2", "--latency", "none"];

fn provision() -> Value {
    json!({"name": "web", "count": 20, "vcpus": 1, "memory_mib": 512, "disk_gib": 1, "image": "debian-12"})
}

/// A start that must fail; gives what it said.
fn refused(data: &Path, arguments: &[&str]) -> Result<String> {
    match Server::listening(data, arguments) {
        Ok(_) => anyhow::bail!("it started"),
        Err(error) => {
            let said = format!("{error:#}");
            assert!(said.contains("exit status: 1"), "{said}");
            assert!(!said.contains("panicked"), "{said}");
            Ok(said)
        }
    }
}

/// Makes a cluster there with some VMs, and stops it.
async fn made(data: &Path) -> Result<()> {
    let server = Server::start(data, SMALL).await?;
    let job = server.submit(&event("provision", "1", None, &provision())).await?;
    server.succeed(&["job", "wait", job.body["job_id"].as_str().context("a job id")?])?;
    server.terminate(Duration::from_secs(30)).await?;
    Ok(())
}

fn contents(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    // The lock file may be touched by whoever looks; what counts is data.
    let files = all_files(folder).into_iter().filter(|path| !path.to_string_lossy().contains("lock"));
    files.map(|path| Ok((path.clone(), fs::read(&path)?))).collect()
}

/// The number of shards is fixed when a cluster is made.
#[tokio::test]
async fn another_number_of_shards() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, config) = (folder.path().join("data"), folder.path().join("cellbus.toml"));
    let with = |shards: u16| -> Result<Vec<String>> {
        fs::write(&config, format!("shards = {shards}\n"))?;
        let config = config.to_str().context("temporary paths are UTF-8")?;
        Ok(["--config", config].iter().chain(SMALL).map(ToString::to_string).collect())
    };
    let sixteen = with(16)?;
    let sixteen: Vec<&str> = sixteen.iter().map(String::as_str).collect();
    let first = Server::start(&data, &sixteen).await?;
    first.submit(&event("provision", "1", None, &provision())).await?;
    assert_eq!(first.terminate(Duration::from_secs(30)).await?.code(), Some(0));
    let other = with(32)?;
    let said = refused(&data, &other.iter().map(String::as_str).collect::<Vec<_>>())?;
    assert!(said.contains("made with 16 shards") && said.contains("configured for 32"), "{said}");
    // Nothing was changed.
    with(16)?;
    let again = Server::start(&data, &sixteen).await?;
    assert_eq!(again.get("/v1/shards").await?.body["items"].as_array().map(Vec::len), Some(16));
    Ok(())
}

#[tokio::test]
async fn two_processes_on_one_directory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let first = Server::start(&data, SMALL).await?;
    let said = refused(&data, SMALL)?;
    assert!(said.contains("in use by another process"), "{said}");
    // The first is none the worse.
    first.submit(&event("provision", "1", None, &provision())).await?;
    first.succeed(&["audit"])?;
    Ok(())
}

#[tokio::test]
async fn a_damaged_log_is_told_and_left_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    made(&data).await?;

    let largest = all_files(&data.join("bus"))
        .into_iter()
        .max_by_key(|path| fs::metadata(path).map_or(0, |meta| meta.len()))
        .context("the bus has files")?;
    let mut bytes = fs::read(&largest)?;
    // In the middle: what follows is sound, so this is no torn last write.
    let written = bytes.iter().rposition(|byte| *byte != 0).context("something was written")?;
    bytes[written / 2] ^= 0x55;
    fs::write(&largest, &bytes)?;
    let before = contents(&data.join("bus"))?;
    let said = refused(&data, SMALL)?;
    assert!(said.contains("damaged"), "{said}");
    assert_eq!(before, contents(&data.join("bus"))?, "a refused start changes nothing");
    Ok(())
}

#[tokio::test]
async fn a_missing_or_damaged_directory_checkpoint_is_made_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    made(&data).await?;

    for path in all_files(&data.join("directory")) {
        let bytes = fs::read(&path)?;
        fs::write(&path, bytes.iter().map(|byte| byte ^ 0x55).collect::<Vec<_>>())?;
    }
    let server = Server::start(&data, SMALL).await?;
    assert_eq!(server.all("/v1/vms?tenant=acme").await?.len(), 20);
    server.succeed(&["audit"])?;
    server.terminate(Duration::from_secs(30)).await?;

    fs::remove_dir_all(data.join("directory"))?;
    let server = Server::start(&data, SMALL).await?;
    assert_eq!(server.all("/v1/vms?tenant=acme").await?.len(), 20);
    Ok(())
}

#[tokio::test]
async fn a_directory_that_cannot_be_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    fs::create_dir(&data)?;
    let mut permissions = fs::metadata(&data)?.permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&data, permissions)?;
    // Root may write where nobody may; there a file system that takes nothing at all stands in.
    let data = if fs::write(data.join("probe"), b"").is_ok() { PathBuf::from("/proc/cellbus-data") } else { data };
    let log = folder.path().join("said");
    let done = cellbus_tests::process::command()
        .args(["up", "--listen", "127.0.0.1:0", "--data"])
        .arg(&data)
        .args(SMALL)
        .stderr(fs::File::create(&log)?)
        .status()?;
    let said = fs::read_to_string(&log)?;
    assert_eq!(done.code(), Some(1), "{said}");
    assert!(said.contains(&data.display().to_string()) && !said.contains("panicked"), "{said}");
    Ok(())
}

#[tokio::test]
async fn below_the_free_space_threshold_intake_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    made(&data).await?;

    // The threshold is crossed as it would be on a disk that fills up: it lies above what is free,
    // and a quarter of it, below which nothing at all is taken, lies under that.
    let free = rustix::fs::statvfs(folder.path())?;
    let free_mib = (free.f_bavail * free.f_frsize) >> 20;
    let threshold = format!("disk.free_min={}MiB", (free_mib + free_mib / 2).min(1 << 20));
    let mut arguments = SMALL.to_vec();
    arguments.extend(["--set", &threshold]);
    let server = Server::start(&data, &arguments).await?;
    let refused = server.submit(&event("provision", "2", None, &provision())).await?;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.body["detail"].as_str().is_some_and(|said| said.contains("free")), "{refused:?}");
    // What is there is still served.
    assert_eq!(server.all("/v1/vms?tenant=acme").await?.len(), 20);
    Ok(())
}
