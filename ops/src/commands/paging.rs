//! Lists that come in pages.

use clap::Args;
use serde_json::Value;

use crate::client::{Answer, Client};
use crate::exit::{Result, note};
use crate::output::Printer;
use crate::table::Column;

/// The most that the server gives in one page.
const LIMIT_MAX: u32 = 1000;

/// Which part of a list.
#[derive(Clone, Debug, Args)]
pub(super) struct Paging {
    /// At most so many (1 to 1000)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    limit: Option<u32>,
    /// Go on where a page before ended
    #[arg(long, value_name = "CURSOR", conflicts_with = "all")]
    cursor: Option<String>,
    /// Every page, one after the other
    #[arg(long)]
    all: bool,
}

impl Paging {
    /// Prints the page, or all of them.
    pub(super) async fn list(
        &self,
        client: &Client,
        printer: &Printer,
        path: &[&str],
        mut query: Vec<(&'static str, String)>,
        columns: &[Column],
    ) -> Result<()> {
        let limit = self.limit.or(self.all.then_some(LIMIT_MAX));
        query.extend(limit.map(|limit| ("limit", limit.to_string())));
        let filters = query.len();
        query.extend(self.cursor.clone().map(|cursor| ("cursor", cursor)));
        let mut pages = 0_u64;
        loop {
            let answer = client.get(path, &query).await?;
            if pages == 0 {
                printer.list(&answer, columns)?;
            } else {
                printer.more(&answer, columns)?;
            }
            pages += 1;
            match next_cursor(&answer) {
                Some(cursor) if self.all => {
                    query.truncate(filters);
                    query.push(("cursor", cursor));
                }
                Some(cursor) => {
                    if !printer.is_json() {
                        note(&format!("there are more: --cursor {cursor}, or --all"));
                    }
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
    }
}

/// Where the next page begins, if there is one.
pub(super) fn next_cursor(answer: &Answer) -> Option<String> {
    answer.value.get("next_cursor").and_then(Value::as_str).map(str::to_owned)
}
