//! Wrong behaviour that a world can be given, to see that a checker finds it.

/// What the ends of one role do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The frames of a lost link go out again with the last one first.
    ReplayOutOfOrder,
    /// The frames of a lost link do not go out again.
    ReplaySkipped,
    /// A frame that was acknowledged goes out again as if it were new.
    ReplayRenumbered,
    /// New frames go out before those of the lost link.
    NewBeforeReplay,
    /// Of the frames of a lost link, those of the session go out behind those of the devices.
    ControlAfterData,
    /// What is known to have arrived before is delivered again.
    DuplicatesDelivered,
    /// Each grant is one window too high.
    CreditTooHigh,
    /// The buffers of received frames are never given back.
    CreditNeverReturned,
    /// The buffers of received frames are given back twice.
    ReleasedTwice,
    /// More frames are acknowledged than arrived.
    AcknowledgesTooMuch,
    /// What a dead session had underway goes out in the next, with its epoch.
    OldSessionCarriedOver,
    /// The attachment of a frame is taken for the present one.
    AttachmentNotChecked,
    /// A device goes by another link while its frames are underway.
    MovedWhileUnderway,
    /// The operator's switchover does not wait for what is underway.
    SwitchoverAtOnce,
    /// Frames that wait in a device's queue are thrown away when a link is lost.
    QueueDropped,
    /// No device sends while one waits for credit, until the world is calm.
    OneStallsAll,
    /// The buffers of received frames are given back before they are free.
    ReleasedEarly,
    /// Now and then one block of a frame's buffers is not given back.
    CreditLeaks,
    /// A host's next session has the epoch before that of the last.
    EpochGoesBack,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::ReplayOutOfOrder,
        Self::ReplaySkipped,
        Self::ReplayRenumbered,
        Self::NewBeforeReplay,
        Self::ControlAfterData,
        Self::DuplicatesDelivered,
        Self::CreditTooHigh,
        Self::CreditNeverReturned,
        Self::ReleasedTwice,
        Self::AcknowledgesTooMuch,
        Self::OldSessionCarriedOver,
        Self::AttachmentNotChecked,
        Self::MovedWhileUnderway,
        Self::SwitchoverAtOnce,
        Self::QueueDropped,
        Self::OneStallsAll,
        Self::ReleasedEarly,
        Self::CreditLeaks,
        Self::EpochGoesBack,
    ];
}
