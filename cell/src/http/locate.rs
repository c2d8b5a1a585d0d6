//! `/v1/locate`: where VMs are. The busiest calls of all, so they write their bytes themselves.
//! The binary form of `POST /v1/locate` is laid out in `ops/docs/locate.md`.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Response};
use bytes::Bytes;
use cellbus_bus::ids::VmId;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::App;
use super::access::Caller;
use super::api::Spot;
use super::extract::{Name, json};
use super::owned;
use super::problem::Problem;
use super::query::Query;
use crate::gateway::LOCATE_MAX;

/// Where a VM is, and who answers for it. For the documentation: `write` makes the bytes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LocatedView {
    /// Which VM.
    vm: String,
    /// The manager that holds it; null while it is being placed, or once it is deleted.
    manager: Option<String>,
    /// The manager's configured name.
    manager_name: Option<String>,
    /// The host, once chosen.
    host: Option<String>,
    /// The VM's home shard.
    shard: u16,
    /// The cell that fronts the manager (or, without a manager, owns the home shard).
    cell: Option<String>,
    /// Where that cell is reached.
    address: Option<String>,
    /// The epoch under which that cell acts.
    epoch: u64,
    /// When this was last known to be true.
    as_of: String,
}

/// Where many VMs are. For the documentation, like [`LocatedView`].
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ManyView {
    /// Those that are there, in the order asked for.
    items: Vec<LocatedView>,
    /// Ids of those that are not.
    missing: Vec<String>,
}

/// Says where a VM is.
#[utoipa::path(get, path = "/v1/locate/{vm}", tag = "locate", params(("vm" = String, Path, description = "the VM's id")),
    responses((status = 200, body = LocatedView), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn one(State(app): State<App>, vm: Name, _: Query, caller: Caller) -> Result<Response<Body>, Problem> {
    find(&app, &caller, vm.id()?).await
}

/// [`one`], for callers that have the id already.
pub(super) async fn find(app: &App, caller: &Caller, vm: VmId) -> Result<Response<Body>, Problem> {
    owned::check_vm(app, caller, vm).await?;
    let mut out = Vec::with_capacity(384);
    app.api.locate_known(&[vm], &mut |_, spot| write(&mut out, spot))?;
    if out.is_empty() {
        let located = app.api.locate(vm).await?;
        write(&mut out, &Spot::of(&located));
    }
    Ok(answer(out, HeaderValue::from_static("application/json")))
}

fn answer(body: Vec<u8>, content_type: HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Says where many VMs are: up to 10,000 ids as a JSON list, or 16 bytes each.
#[utoipa::path(post, path = "/v1/locate", tag = "locate",
    request_body(content((Vec<String> = "application/json"), (Vec<u8> = "application/octet-stream"))),
    responses(
        (status = 200, description = "JSON, or for a binary body the fixed-size records that ops/docs/locate.md lays out",
            content((ManyView = "application/json"), (Vec<u8> = "application/octet-stream"))),
        (status = 400, body = Problem), (status = 503, body = Problem),
    ))]
pub(super) async fn many(
    State(app): State<App>,
    _: Query,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Body>, Problem> {
    let binary = headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes() == b"application/octet-stream");
    let ids = if binary { binary_ids(&body)? } else { json_ids(&body)? };
    drop(body);
    if binary { many_binary(&app, &caller, &ids).await } else { many_json(&app, &caller, &ids).await }
}

fn too_many(count: usize) -> Problem {
    Problem::bad_request("too_many_ids", format!("{count} ids are more than the {LOCATE_MAX} that one call may name"))
}

fn binary_ids(body: &[u8]) -> Result<Vec<VmId>, Problem> {
    let (ids, rest) = body.as_chunks::<16>();
    if !rest.is_empty() {
        let detail = format!("{} bytes are no whole number of ids of 16 bytes", body.len());
        return Err(Problem::bad_request("invalid_body", detail));
    }
    if ids.len() > LOCATE_MAX {
        return Err(too_many(ids.len()));
    }
    Ok(ids.iter().map(|id| VmId::from_uuid(Uuid::from_bytes(*id))).collect())
}

fn json_ids(body: &Bytes) -> Result<Vec<VmId>, Problem> {
    // Borrowed: an id has no escapes, and what has some is no id.
    let texts: Vec<&str> = json(body)?;
    if texts.len() > LOCATE_MAX {
        return Err(too_many(texts.len()));
    }
    let parsed = texts.iter().enumerate().map(|(index, text)| {
        text.parse().map_err(|error: cellbus_bus::ids::InvalidId| {
            let detail = format!("`{}` is not one: {error}", super::query::shown(text));
            Problem::bad_request("invalid_id", detail).at(format!("/{index}"))
        })
    });
    parsed.collect()
}

/// Which of `ids` are to be answered as not there: those that the directory knows to be
/// another tenant's.
struct Hidden(Vec<bool>);

impl Hidden {
    async fn from(app: &App, caller: &Caller, ids: &[VmId]) -> Self {
        let Some(own) = caller.scope() else { return Self(Vec::new()) };
        let tenants = app.api.tenants_of(ids).await;
        Self(tenants.into_iter().map(|tenant| tenant.is_some_and(|tenant| tenant != *own)).collect())
    }
    fn has(&self, index: usize) -> bool {
        self.0.get(index).copied().unwrap_or(false)
    }
}

/// For those that the directory beside us does not know, what their homes say.
async fn missed(
    app: &App,
    caller: &Caller,
    ids: &[VmId],
    known: &[bool],
    hidden: &Hidden,
) -> Result<Vec<(usize, crate::gateway::Located)>, Problem> {
    let (indices, misses): (Vec<usize>, Vec<VmId>) = ids
        .iter()
        .enumerate()
        .filter(|(index, _)| !known[*index] && !hidden.has(*index))
        .map(|(index, id)| (index, *id))
        .unzip();
    if misses.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (index, located) in indices.into_iter().zip(app.api.locate_many(&misses).await?) {
        let Some(located) = located else { continue };
        match owned::check_vm(app, caller, located.vm).await {
            Ok(()) => found.push((index, located)),
            Err(crate::gateway::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

async fn many_json(app: &App, caller: &Caller, ids: &[VmId]) -> Result<Response<Body>, Problem> {
    let mut known = vec![false; ids.len()];
    let hidden = Hidden::from(app, caller, ids).await;
    let mut rows = Vec::with_capacity(ids.len() * 320 + 64);
    // Where each row ends, so that rows found later go in between.
    let mut ends: Vec<(usize, usize)> = Vec::with_capacity(ids.len());
    app.api.locate_known(ids, &mut |index, spot| {
        if hidden.has(index) {
            return;
        }
        known[index] = true;
        write(&mut rows, spot);
        ends.push((index, rows.len()));
    })?;
    let late = missed(app, caller, ids, &known, &hidden).await?;
    let mut late_rows: Vec<(usize, Vec<u8>)> = Vec::with_capacity(late.len());
    for (index, located) in &late {
        known[*index] = true;
        let mut row = Vec::with_capacity(320);
        write(&mut row, &Spot::of(located));
        late_rows.push((*index, row));
    }
    let mut out = Vec::with_capacity(rows.len() + ids.len() + 64);
    out.extend_from_slice(b"{\"items\":[");
    let (mut begin, mut late_rows) = (0, late_rows.into_iter().peekable());
    let comma = |out: &mut Vec<u8>| {
        if out.last() == Some(&b'}') {
            out.push(b',');
        }
    };
    for (index, end) in ends {
        while let Some((_, row)) = late_rows.next_if(|(late, _)| *late < index) {
            comma(&mut out);
            out.extend_from_slice(&row);
        }
        comma(&mut out);
        out.extend_from_slice(&rows[begin..end]);
        begin = end;
    }
    for (_, row) in late_rows {
        comma(&mut out);
        out.extend_from_slice(&row);
    }
    out.extend_from_slice(b"],\"missing\":[");
    let mut first = true;
    for (id, _) in ids.iter().zip(&known).filter(|(_, known)| !**known) {
        if !first {
            out.push(b',');
        }
        first = false;
        uuid(&mut out, &id.uuid());
    }
    out.extend_from_slice(b"]}");
    Ok(answer(out, HeaderValue::from_static("application/json")))
}

/// One row as JSON. Ids and names are of alphabets that need no escapes; an address may be anything.
fn write(out: &mut Vec<u8>, spot: &Spot<'_>) {
    out.extend_from_slice(b"{\"vm\":");
    uuid(out, &spot.vm.uuid());
    out.extend_from_slice(b",\"manager\":");
    match spot.manager {
        Some(manager) => uuid(out, &manager.uuid()),
        None => out.extend_from_slice(b"null"),
    }
    for (key, value) in
        [(&b",\"manager_name\":"[..], spot.manager_name), (b",\"host\":", spot.host), (b",\"cell\":", spot.cell)]
    {
        out.extend_from_slice(key);
        plain(out, value);
    }
    out.extend_from_slice(b",\"address\":");
    match spot.address {
        // Writing to memory does not fail.
        Some(text) => serde_json::to_writer(&mut *out, text).expect("a text is always JSON"),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"shard\":");
    number(out, u64::from(spot.shard.index()));
    out.extend_from_slice(b",\"epoch\":");
    number(out, spot.epoch.0);
    out.extend_from_slice(b",\"as_of\":\"");
    rfc3339(out, spot.as_of.0);
    out.extend_from_slice(b"\"}");
}

fn plain(out: &mut Vec<u8>, value: Option<&str>) {
    match value {
        Some(text) => {
            out.push(b'"');
            out.extend_from_slice(text.as_bytes());
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
}

fn uuid(out: &mut Vec<u8>, id: &Uuid) {
    let mut text = Uuid::encode_buffer();
    out.push(b'"');
    out.extend_from_slice(id.hyphenated().encode_lower(&mut text).as_bytes());
    out.push(b'"');
}

fn number(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(n % 10).expect("a digit");
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// As [`cellbus_bus::WallMs::rfc3339`] writes it, in a tenth of the time: a row's time is a large
/// part of what 10,000 rows cost. Days to a date by the algorithm of Howard Hinnant's
/// `civil_from_days`.
fn rfc3339(out: &mut Vec<u8>, millis: u64) {
    // 9999-12-31: what lies beyond has no four digits for its year.
    if millis > 253_402_300_799_999 {
        out.extend_from_slice(cellbus_bus::WallMs(millis).rfc3339().as_bytes());
        return;
    }
    let (days, in_day) = (millis / 86_400_000, millis % 86_400_000);
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second, milli) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1_000 % 60, in_day % 1_000);
    let two =
        |n: u64| [b'0' + u8::try_from(n / 10 % 10).expect("a digit"), b'0' + u8::try_from(n % 10).expect("a digit")];
    out.extend_from_slice(&two(year / 100));
    out.extend_from_slice(&two(year % 100));
    for (mark, value) in [(b'-', month), (b'-', day), (b'T', hour), (b':', minute), (b':', second)] {
        out.push(mark);
        out.extend_from_slice(&two(value));
    }
    out.push(b'.');
    out.push(b'0' + u8::try_from(milli / 100).expect("a digit"));
    out.extend_from_slice(&two(milli % 100));
    out.push(b'Z');
}

/// Bytes of a record of the binary form.
const RECORD: usize = 56;
const HEADER: usize = 16;

/// The names of a binary answer. Cells and addresses are few, and written once each.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    once: Vec<(usize, u32)>,
}

impl Names {
    fn put(&mut self, text: &str) -> (u32, u16) {
        // 10,000 names of at most 253 bytes, and few addresses: far below both bounds. What does
        // not fit is left out rather than cut.
        let (Ok(at), Ok(len)) = (u32::try_from(self.bytes.len()), u16::try_from(text.len())) else { return (0, 0) };
        self.bytes.extend_from_slice(text.as_bytes());
        (at, len)
    }
    fn put_once(&mut self, text: &str) -> (u32, u16) {
        // The same text mostly has the same address in memory; if not, it is compared.
        let key = text.as_ptr().addr();
        for (known, at) in self.once.iter().rev().take(16) {
            let begin = *at as usize;
            if *known == key || self.bytes.get(begin..begin + text.len()) == Some(text.as_bytes()) {
                return (*at, u16::try_from(text.len()).unwrap_or(0));
            }
        }
        let (at, len) = self.put(text);
        self.once.push((key, at));
        (at, len)
    }
}

async fn many_binary(app: &App, caller: &Caller, ids: &[VmId]) -> Result<Response<Body>, Problem> {
    let mut known = vec![false; ids.len()];
    let hidden = Hidden::from(app, caller, ids).await;
    let mut out = vec![0_u8; HEADER + ids.len() * RECORD];
    let mut names = Names { bytes: Vec::with_capacity(ids.len() * 16), once: Vec::new() };
    app.api.locate_known(ids, &mut |index, spot| {
        if hidden.has(index) {
            return;
        }
        known[index] = true;
        record(&mut out[HEADER + index * RECORD..][..RECORD], spot, &mut names);
    })?;
    for (index, located) in missed(app, caller, ids, &known, &hidden).await? {
        record(&mut out[HEADER + index * RECORD..][..RECORD], &Spot::of(&located), &mut names);
    }
    let count = u32::try_from(ids.len()).expect("at most LOCATE_MAX");
    let names_len = u32::try_from(names.bytes.len()).unwrap_or(0);
    out[0..4].copy_from_slice(b"CBLO");
    out[4..6].copy_from_slice(&1_u16.to_be_bytes());
    out[6..8].copy_from_slice(&(RECORD as u16).to_be_bytes());
    out[8..12].copy_from_slice(&count.to_be_bytes());
    out[12..16].copy_from_slice(&names_len.to_be_bytes());
    out.extend_from_slice(&names.bytes);
    Ok(answer(out, HeaderValue::from_static("application/octet-stream")))
}

fn record(out: &mut [u8], spot: &Spot<'_>, names: &mut Names) {
    out[0] = 1;
    out[2..4].copy_from_slice(&spot.shard.index().to_be_bytes());
    if let Some(host) = spot.host {
        let (at, len) = names.put(host);
        out[4..8].copy_from_slice(&at.to_be_bytes());
        out[8..10].copy_from_slice(&len.to_be_bytes());
    }
    if let Some(cell) = spot.cell {
        let (at, len) = names.put_once(cell);
        out[10..12].copy_from_slice(&len.to_be_bytes());
        out[12..16].copy_from_slice(&at.to_be_bytes());
    }
    if let Some(manager) = spot.manager {
        out[16..32].copy_from_slice(manager.as_bytes());
    }
    out[32..40].copy_from_slice(&spot.epoch.0.to_be_bytes());
    out[40..48].copy_from_slice(&spot.as_of.0.to_be_bytes());
    if let Some(address) = spot.address {
        let (at, len) = names.put_once(address);
        out[48..52].copy_from_slice(&at.to_be_bytes());
        out[52..54].copy_from_slice(&len.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn times_are_written_as_everywhere_else(millis in 0_u64..300_000_000_000_000) {
            let mut out = Vec::new();
            rfc3339(&mut out, millis);
            proptest::prop_assert_eq!(String::from_utf8(out).unwrap(), cellbus_bus::WallMs(millis).rfc3339());
        }
        #[test]
        fn numbers_are_written_whole(n in proptest::prelude::any::<u64>()) {
            let mut out = Vec::new();
            number(&mut out, n);
            proptest::prop_assert_eq!(String::from_utf8(out).unwrap(), n.to_string());
        }
    }
}
