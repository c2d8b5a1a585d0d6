//! Deliberate bugs, to show that the simulation can fail. Tests alone switch them on; each must be
//! caught within a stated number of seeds.

/// One deliberate bug. What a cell would do wrong is done for it at the door that it goes through
/// (its bus, its manager, its peers), so that no build of a cell carries the bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Appends do not say where they expect the log to end.
    SkipTheFence,
    /// A message from ingress is acknowledged before its job is durable at its home.
    AckBeforePublish,
    /// A home says that it has a job that was handed to it before it is in its log.
    AnswerBeforeAppend,
    /// A queue is read on from one message too far after it is opened again.
    ReadPositionOffByOne,
    /// What a create left behind is not removed.
    DropACompensation,
    /// A create without an answer is taken for one that never began, and made elsewhere.
    DoublePlacement,
    /// A manager does not revoke the sessions of older owners.
    KeepOldSessions,
    /// The directory does not hear of every record.
    StaleDirectory,
    /// Outcomes are not published again after a crash.
    ForgetOutcomes,
    /// Keys of jobs that have ended are forgotten at once, and whoever opens a shard reads its queue
    /// again from the start: what was done is done again.
    ForgetDedupe,
    /// What has rotted in a checkpoint has the right checksum.
    UncheckedCheckpoint,
    /// A directory does not see that a log has become shorter, nor that its last entry is another.
    BlindDirectory,
    /// A launcher acts on what its controller has decided and has not yet read back.
    ActOnTheUnkept,
    /// A bus that does not tell what is in a log says all the same that it has not grown.
    GoOnUnknowing,
}

impl Sabotage {
    /// Every one.
    pub const ALL: &[Self] = &[
        Self::SkipTheFence,
        Self::AckBeforePublish,
        Self::AnswerBeforeAppend,
        Self::ReadPositionOffByOne,
        Self::DropACompensation,
        Self::DoublePlacement,
        Self::KeepOldSessions,
        Self::StaleDirectory,
        Self::ForgetOutcomes,
        Self::ForgetDedupe,
        Self::UncheckedCheckpoint,
        Self::BlindDirectory,
        Self::ActOnTheUnkept,
        Self::GoOnUnknowing,
    ];
}
