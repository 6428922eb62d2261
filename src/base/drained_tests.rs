use crossbeam_channel::TryRecvError;

use super::drained::Drained;

#[test]
fn a_watcher_is_notified_at_once_or_with_the_next_notice() {
    let mut drained = Drained::default();
    assert_eq!(drained.watch(true).try_recv(), Err(TryRecvError::Disconnected));
    let watched = drained.watch(false);
    assert_eq!(watched.try_recv(), Err(TryRecvError::Empty));
    drained.notify();
    assert_eq!(watched.try_recv(), Err(TryRecvError::Disconnected));
}
