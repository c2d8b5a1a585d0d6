//! A rolling upgrade: which builds take part, what cells write, and raising it.

use cellbus_bus::contract::{ClusterRecord, Member};
use cellbus_directory::record::Operator;

use super::{Error, Gateway, Result};

/// How far an upgrade is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// What cells write, by the cluster record.
    pub format: u16,
    /// The newest format that any live member knows: what it may be raised to.
    pub newest: u16,
    /// Every live member, by id.
    pub members: Vec<Member>,
}

impl Upgrade {
    /// Of this record and these live members.
    #[must_use]
    pub fn of(record: &ClusterRecord, members: Vec<Member>) -> Self {
        let newest = members.iter().map(|member| member.build.formats.newest).fold(record.format, u16::max);
        Self { format: record.format, newest, members }
    }

    /// The members that cannot read `newest`: as long as they live, it is not raised.
    pub fn hindering(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.build.formats.read(self.newest))
    }
}

impl Gateway {
    async fn record(&self) -> Result<ClusterRecord> {
        let none = || Error::NotReady { reason: "there is no cluster record yet".to_owned() };
        self.inner.process.bus.cluster_record().await?.ok_or_else(none)
    }

    /// Which builds take part, and what cells write.
    ///
    /// # Errors
    /// [`Error::BusAway`].
    pub async fn upgrade(&self) -> Result<Upgrade> {
        let record = self.record().await?;
        Ok(Upgrade::of(&record, self.inner.process.bus.members().await?))
    }

    /// Has cells write the newest format that any live member knows. Durable on return; they do so
    /// within a second or two. From then on no older build takes part. Nothing is done where they
    /// write it already.
    ///
    /// # Errors
    /// [`Error::Conflict`] `upgrade_hindered` while a live member cannot read it,
    /// `upgrade_under_way` when somebody else was faster; [`Error::BusAway`], [`Error::NoAnswer`].
    pub async fn finalize_upgrade(&self, by: Operator) -> Result<Upgrade> {
        let record = self.record().await?;
        let upgrade = Upgrade::of(&record, self.inner.process.bus.members().await?);
        let hindering: Vec<String> = upgrade
            .hindering()
            .map(|member| format!("{} ({}, reads {})", member.cell, member.build.version, member.build.formats))
            .collect();
        let newest = upgrade.newest;
        if !hindering.is_empty() {
            let message =
                format!("format {newest} is not read by {}; replace or stop them first", hindering.join(", "));
            return Err(Error::Conflict { code: "upgrade_hindered", message });
        }
        if newest == record.format {
            return Ok(upgrade);
        }
        self.note_change(by, format!("upgrade finalize: format {} to {newest}", record.format)).await?;
        let raised = ClusterRecord { format: newest, ..record.clone() };
        let stored = self.inner.process.bus.replace_cluster(&record, raised.clone()).await?;
        if stored != raised {
            let message = "somebody else has changed the cluster record meanwhile; look with `cellbus upgrade status`";
            return Err(Error::Conflict { code: "upgrade_under_way", message: message.to_owned() });
        }
        Ok(Upgrade { format: newest, ..upgrade })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellbus_bus::WallMs;
    use cellbus_bus::contract::{MemberState, Role};
    use cellbus_bus::format::{Build, Formats};
    use cellbus_bus::ids::ShardCount;

    fn member(id: &str, oldest: u16, newest: u16) -> Member {
        Member {
            cell: id.parse().unwrap(),
            role: Role::Cell,
            address: String::new(),
            state: MemberState::Active,
            joined_at: WallMs(0),
            beat: 0,
            build: Build { version: "1".to_owned(), formats: Formats { oldest, newest } },
        }
    }

    fn hindered(format: u16, members: &[(&str, u16, u16)]) -> (u16, Vec<String>) {
        let record = ClusterRecord {
            cluster_id: uuid::Uuid::nil(),
            shards: ShardCount::DEFAULT,
            hash_scheme: 1,
            format,
            created_at: WallMs(0),
        };
        let members = members.iter().map(|(id, oldest, newest)| member(id, *oldest, *newest)).collect();
        let upgrade = Upgrade::of(&record, members);
        (upgrade.newest, upgrade.hindering().map(|member| member.cell.to_string()).collect())
    }

    #[test]
    fn who_cannot_read_the_newest_hinders() {
        assert_eq!(hindered(1, &[("a", 1, 1), ("b", 1, 1)]), (1, vec![]), "one build: nothing to do");
        assert_eq!(hindered(1, &[("a", 1, 1), ("b", 1, 2), ("c", 1, 1)]), (2, vec!["a".to_owned(), "c".to_owned()]));
        assert_eq!(hindered(1, &[("a", 1, 2), ("b", 1, 2)]), (2, vec![]));
        assert_eq!(hindered(1, &[("a", 1, 2), ("b", 1, 3)]), (3, vec!["a".to_owned()]));
        assert_eq!(hindered(2, &[("a", 1, 1)]), (2, vec!["a".to_owned()]), "one that has come too late");
        assert_eq!(hindered(2, &[]), (2, vec![]), "never lowered");
    }
}
