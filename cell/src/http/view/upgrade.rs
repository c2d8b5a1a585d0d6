//! Which builds take part.

use cellbus_bus::contract::{Member, MemberState, Role};
use serde::Serialize;
use utoipa::ToSchema;

use super::time;
use crate::gateway::Upgrade;

/// How far an upgrade is.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct UpgradeView {
    /// The format that cells write.
    format: u16,
    /// The newest that any live member knows: what `finalize` would raise it to.
    newest: u16,
    /// unchanged (nothing to raise), ready (finalize would raise it) or hindered.
    state: &'static str,
    /// Ids of the live members that cannot read `newest`.
    hindered_by: Vec<String>,
    /// Every live member, by id.
    members: Vec<BuildView>,
}

/// Of which build a member is.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BuildView {
    id: String,
    /// cell, directory or controller.
    role: &'static str,
    address: String,
    /// active or draining.
    state: &'static str,
    joined_at: String,
    version: String,
    /// The oldest format that it reads.
    format_oldest: u16,
    /// The newest.
    format_newest: u16,
    /// Whether it reads `newest`.
    keeps_up: bool,
}

impl From<Upgrade> for UpgradeView {
    fn from(upgrade: Upgrade) -> Self {
        let Upgrade { format, newest, .. } = upgrade;
        let hindered_by: Vec<String> = upgrade.hindering().map(|member| member.cell.to_string()).collect();
        Self {
            format,
            newest,
            state: match (hindered_by.is_empty(), format == newest) {
                (false, _) => "hindered",
                (true, true) => "unchanged",
                (true, false) => "ready",
            },
            hindered_by,
            members: upgrade.members.into_iter().map(|member| BuildView::of(newest, member)).collect(),
        }
    }
}

impl BuildView {
    fn of(newest: u16, member: Member) -> Self {
        let formats = member.build.formats;
        Self {
            id: member.cell.to_string(),
            role: match member.role {
                Role::Cell => "cell",
                Role::Directory => "directory",
                Role::Controller => "controller",
            },
            address: member.address,
            state: match member.state {
                MemberState::Active => "active",
                MemberState::Draining => "draining",
            },
            joined_at: time(member.joined_at),
            version: member.build.version,
            format_oldest: formats.oldest,
            format_newest: formats.newest,
            keeps_up: formats.read(newest),
        }
    }
}
