//! Detects forked children. A fork copies the memory of a process but not its threads: in the child
//! their work is never finished, and locks that they held stay locked.

use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Error, Result};

/// The process id of the library's process; 0 before the library starts its first thread.
static HOME: AtomicU32 = AtomicU32::new(0);

/// Makes this process the library's process. Called before a thread is started.
///
/// # Errors
/// As [`check`].
pub fn enter() -> Result<()> {
    let _ = HOME.compare_exchange(0, process::id(), Ordering::SeqCst, Ordering::SeqCst);
    check()
}

/// Fails in a child that was forked from the library's process. Called before taking a lock that
/// another thread may hold.
///
/// # Errors
/// [`Error::InvalidState`].
pub fn check() -> Result<()> {
    if is_forked() {
        return Err(Error::InvalidState(
            "this process was forked from one that uses the library, whose threads did not come along; \
             use the library in the parent, or call exec after fork, or fork before the library is first used"
                .into(),
        ));
    }
    Ok(())
}

/// Returns whether this process was forked from the library's process.
pub fn is_forked() -> bool {
    let home = HOME.load(Ordering::SeqCst);
    home != 0 && home != process::id()
}
