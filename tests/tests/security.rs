//! TLS, tokens and certificates of members with real processes, made as `ops/docs/security.md` says:
//! the commands that it shows are the ones that are run.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_tests::process::{Server, command, wait_for};
use cellbus_tests::workspace::root;
use serde_json::{Value, json};
use tempfile::TempDir;

const WAIT: Duration = Duration::from_secs(60);

/// Runs the blocks of the page that make certificates. `None` where there is no openssl.
fn certificates() -> Result<Option<TempDir>> {
    if Command::new("openssl").arg("version").output().is_err() {
        ensure!(std::env::var_os("CI").is_none(), "openssl is not installed");
        eprintln!("LEFT OUT: openssl is not installed");
        return Ok(None);
    }
    let page = std::fs::read_to_string(root().join("ops/docs/security.md"))?;
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let blocks: Vec<&str> = blocks.filter(|block| block.starts_with("openssl")).collect();
    ensure!(blocks.len() == 2, "the page shows how to make certificates of the API and of members");
    let folder = tempfile::tempdir()?;
    for block in blocks {
        let done = Command::new("sh").args(["-ec", block]).current_dir(folder.path()).output()?;
        ensure!(done.status.success(), "{block}\n{}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(Some(folder))
}

/// A token and the line for the file.
fn token(of: &[&str]) -> Result<(String, String)> {
    let made = command().args(["token", "new"]).args(of).output()?;
    let out = String::from_utf8(made.stdout)?;
    let (token, line) = out.trim_end().split_once('\n').context("two lines")?;
    ensure!(token.starts_with("cbt_") && token.len() == 68 && !line.contains(token), "{token} {line}");
    Ok((token.to_owned(), format!("{line}\n")))
}

/// A client command, as somebody who has this token and believes this CA.
fn client(server: &str, ca: Option<&Path>, token: Option<&str>, arguments: &[&str]) -> Command {
    let mut client = command();
    client.args(arguments).env("CELLBUS_SERVER", server).stdin(Stdio::null());
    if let Some(ca) = ca {
        client.env("CELLBUS_CA", ca);
    }
    if let Some(token) = token {
        client.env("CELLBUS_TOKEN", token);
    }
    client
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_beyond_loopback_lets_in_whom_it_should() -> Result<()> {
    let Some(folder) = certificates()? else { return Ok(()) };
    let at = |name: &str| folder.path().join(name).display().to_string();
    let members = [
        "--members-ca",
        &at("members-ca.pem"),
        "--members-cert",
        &at("member.pem"),
        "--members-key",
        &at("member.key"),
    ];
    let managers =
        ["sim-managers", "--managers", "2", "--hosts-per-manager", "4", "--latency", "none", "--listen", "127.0.0.1:0"];
    let managers = Server::spawn(&folder.path().join("managers"), &[&managers[..], &members[..]].concat())?;
    ensure!(managers.url.starts_with("https://"), "{}", managers.url);

    let (ada, operator) = token(&["--name", "ada", "--operator"])?;
    let (acme, acme_line) = token(&["--name", "portal", "--tenant", "acme"])?;
    let (other, other_line) = token(&["--name", "shop", "--tenant", "other"])?;
    std::fs::write(at("tokens.toml"), format!("{operator}{acme_line}{other_line}"))?;
    let mut config = format!(
        "listen = \"0.0.0.0:0\"\n[tls]\ncert = \"{}\"\nkey = \"{}\"\n[auth]\ntokens = \"{}\"\n\
         [members.tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n[security]\nreload_interval = \"50ms\"\n",
        at("api.pem"),
        at("api.key"),
        at("tokens.toml"),
        at("members-ca.pem"),
        at("member.pem"),
        at("member.key")
    );
    for name in ["sim-0000", "sim-0001"] {
        config.push_str(&format!("[[managers]]\nname = \"{name}\"\naddress = \"{}\"\n", managers.url));
    }
    std::fs::write(at("cellbus.toml"), &config)?;
    // Less than all of it is not enough beyond loopback.
    let bare = config.replace("[auth]\ntokens", "[auth]\n#tokens");
    std::fs::write(at("bare.toml"), bare)?;
    let (code, text) = said(&command().args(["config", "check", "--config", &at("bare.toml")]).output()?);
    ensure!(code == Some(1) && text.contains("there is no authentication (`auth.tokens`);"), "{text}");

    let up = ["up", "--data", &at("data"), "--config", &at("cellbus.toml"), "--cells", "2", "--log-level", "debug"];
    let server = Server::spawn(&folder.path().join("data"), &up)?;
    let port = server.url.rsplit_once(':').context("a port")?.1;
    ensure!(server.url.starts_with("https://0.0.0.0:"), "{}", server.url);
    let url = format!("https://127.0.0.1:{port}");
    let ca = folder.path().join("api-ca.pem");
    let run = |token: Option<&str>, arguments: &[&str]| -> Result<(Option<i32>, String)> {
        Ok(said(&client(&url, Some(&ca), token, arguments).output()?))
    };
    wait_for("the server to be ready", WAIT, async || {
        let (code, text) = run(Some(&ada), &["cells"])?;
        let managers = run(Some(&ada), &["managers", "--output", "json"])?.1;
        Ok(if code == Some(0) && managers.matches("\"healthy\"").count() == 2 { Ok(()) } else { Err(text + &managers) })
    })
    .await
    .with_context(|| server.log_tail())?;

    // Whom it does not know, and who does not know it.
    let (code, text) = run(None, &["cells"])?;
    ensure!(code == Some(1) && text.contains("refused (unauthenticated)"), "{text}");
    let (code, text) = run(Some("cbt_0"), &["cells"])?;
    ensure!(code == Some(1) && text.contains("refused (unauthenticated)") && !text.contains("cbt_0"), "{text}");
    let (code, text) = run(Some(&acme), &["cells"])?;
    ensure!(code == Some(1) && text.contains("refused (forbidden)"), "{text}");
    let strangers = folder.path().join("members-ca.pem");
    let (code, text) = said(&client(&url, Some(&strangers), Some(&ada), &["cells"]).output()?);
    ensure!(code == Some(3) && text.contains("certificate"), "{text}");
    let (code, text) = said(&client(&url, None, Some(&ada), &["cells"]).output()?);
    ensure!(code == Some(3) && text.contains("certificate"), "{text}");
    // Managers are there for members alone.
    let (code, text) = said(&client(&managers.url, Some(&strangers), Some(&ada), &["cells"]).output()?);
    ensure!(code == Some(3), "{text}");

    // Tenants, each by itself; the work goes to managers that know cells by their certificates.
    let data = json!({"name": "web", "vcpus": 1, "memory_mib": 512, "disk_gib": 10, "image": "debian-12"});
    let event = json!({"specversion": "1.0", "id": "1", "source": "/tests", "type": "io.cellbus.job.provision.v1", "data": data});
    std::fs::write(at("job.json"), event.to_string())?;
    let (code, text) = run(Some(&acme), &["submit", &at("job.json"), "--wait", "--output", "json"])?;
    ensure!(code == Some(0), "{text}\n{}", server.log_tail());
    let vms = |token: &str| -> Result<usize> {
        let listed: Value = serde_json::from_str(&run(Some(token), &["vm", "list", "--output", "json"])?.1)?;
        Ok(listed["items"].as_array().context("a list")?.len())
    };
    ensure!((vms(&acme)?, vms(&other)?, vms(&ada)?) == (1, 0, 1));
    let (code, text) = run(Some(&other), &["vm", "list", "--tenant", "acme"])?;
    ensure!(code == Some(1) && text.contains("tenant_mismatch"), "{text}");
    // By hand too, from a file that holds the token.
    std::fs::write(at("ada.token"), format!("{ada}\n"))?;
    let (code, text) = run(None, &["managers", "cordon", "sim-0000", "--token-file", &at("ada.token")])?;
    ensure!(code == Some(0), "{text}");
    run(Some(&ada), &["managers", "uncordon", "sim-0000"])?;

    // Under load, whose command line anybody can read.
    let mut load =
        client(&url, Some(&ca), Some(&ada), &["load", "--rate", "20", "--duration", "3s", "--output", "json"]);
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let line = std::fs::read(format!("/proc/{}/cmdline", load.id())).unwrap_or_default();
    ensure!(!String::from_utf8_lossy(&line).contains("cbt_"), "the token is on the command line");
    let (code, text) = said(&load.wait_with_output()?);
    ensure!(code == Some(0), "{text}\n{}", server.log_tail());

    // Another file of tokens, while it runs.
    let (next, next_line) = token(&["--name", "ada", "--operator"])?;
    std::fs::write(at("tokens.toml"), next_line)?;
    wait_for("the new token counts", WAIT, async || {
        let (code, text) = run(Some(&next), &["cells"])?;
        Ok(if code == Some(0) { Ok(()) } else { Err(text) })
    })
    .await?;
    for old in [&ada, &acme, &other] {
        ensure!(run(Some(old), &["vm", "list"])?.1.contains("unauthenticated"), "an old token still counts");
    }

    // Nothing of what is secret is to be seen anywhere.
    let (_, dump) = said(&command().args(["config", "dump", "--config", &at("cellbus.toml")]).output()?);
    ensure!(dump.contains("tokens.toml") && dump.contains("members-ca.pem"), "{dump}");
    let mut secrets = vec![ada, acme, other, next];
    for key in ["api.key", "member.key"] {
        let text = std::fs::read_to_string(at(key))?;
        secrets.push(text.lines().nth(1).context("a key has lines")?.to_owned());
    }
    for (what, text) in [("the log", server.log()), ("the managers' log", managers.log()), ("the dump", dump)] {
        for secret in &secrets {
            ensure!(!text.contains(secret.as_str()), "{what} tells a secret");
        }
    }
    Ok(())
}

#[test]
fn what_would_give_a_token_away_is_refused() -> Result<()> {
    let refused = |server: &str, what: &str| -> Result<()> {
        let (code, text) = said(&client(server, None, Some("cbt_secret"), &["cells"]).output()?);
        ensure!(code == Some(2) && text.contains(what) && !text.contains("cbt_secret"), "{text}");
        Ok(())
    };
    refused("http://192.0.2.1:7070", "in clear")?;
    refused("http://ada:cbt_secret@127.0.0.1:7070", "names and passwords")?;
    refused("ftp://127.0.0.1", "only https:// and http://")?;
    let (code, text) = said(&client("http://127.0.0.1:1", None, Some("a b"), &["cells"]).output()?);
    ensure!(code == Some(2) && text.contains("more than one word"), "{text}");
    let (code, text) = said(&command().args(["sim-managers", "--listen", "0.0.0.0:0"]).output()?);
    ensure!(code == Some(2) && text.contains("--members-ca"), "{text}");
    let (code, text) = said(&command().args(["token", "new", "--name", "a b", "--operator"]).output()?);
    ensure!(code == Some(2) && !text.contains("cbt_"), "{text}");
    Ok(())
}
