//! Memory that is not needed any more goes back to the machine.
//!
//! An operator is busy for minutes and then idle for days. What a burst has taken would otherwise stay with the process,
//! scattered over several pools of the C library.

use std::time::Duration;

use crate::context::Context;

/// Pause between two looks at whether the work has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Sets the C library's allocator to take little. Has no effect with other libraries than glibc.
///
/// To be called before there is a second thread.
pub fn take_little() {
    glibc::take_little();
}

/// Gives memory back whenever work has been done and none is left, for ever.
pub async fn give_back_at_rest(context: &Context) {
    let mut before = 0;
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let passes = context.metrics.passes();
        let queues = [&context.comuni, &context.databases, &context.catalogue];
        let is_idle = queues.iter().all(|queue| queue.depth() == 0 && queue.active() == 0);
        if is_idle && passes != before {
            glibc::give_back();
            before = passes;
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    /// Texts from this size on, in bytes, have pages of their own that go back at once: above all pages of lists.
    const OWN_PAGES: i32 = 64 << 10;

    #[expect(unsafe_code, reason = "the C library's settings have no other interface")]
    pub fn take_little() {
        for (setting, value) in [
            // Threads that take turns with one pool leave fewer holes than threads with a pool each.
            (libc::M_ARENA_MAX, 1),
            (libc::M_MMAP_THRESHOLD, OWN_PAGES),
            (libc::M_TRIM_THRESHOLD, OWN_PAGES),
        ] {
            // SAFETY: it takes two numbers, and refuses those that it does not know.
            let taken = unsafe { libc::mallopt(setting, value) };
            if taken == 0 {
                tracing::debug!(setting, "the allocator does not know this setting");
            }
        }
    }

    #[expect(unsafe_code, reason = "the C library has no other interface for it")]
    pub fn give_back() {
        // SAFETY: it takes a number and touches nothing that is in use.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod glibc {
    pub fn take_little() {}
    pub fn give_back() {}
}
