//! Asking the processor for memory ahead of its use. Never faults, never changes anything; where there is no such
//! instruction it does nothing.
#![expect(unsafe_code, reason = "prefetch instructions take a pointer; they may be given any")]

const LINE_BYTES: usize = 64;

/// Asks for every cache line that a slice touches.
#[inline(always)]
pub(super) fn prefetch<T>(items: &[T]) {
    let first = items.as_ptr().cast::<u8>();
    for offset in (0..size_of_val(items)).step_by(LINE_BYTES) {
        prefetch_line(first.wrapping_add(offset));
    }
}

#[inline(always)]
#[cfg(target_arch = "x86_64")]
fn prefetch_line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch of any address whatever is without effect but on speed; SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[inline(always)]
#[cfg(target_arch = "aarch64")]
fn prefetch_line(address: *const u8) {
    // SAFETY: as above; `prfm` reads no register but the address and writes none.
    unsafe { std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, preserves_flags, readonly)) }
}

#[inline(always)]
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn prefetch_line(_: *const u8) {}
