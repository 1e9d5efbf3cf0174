//! What POSIX and Linux promise to programs, on a real mount: judged by suites of others, and where they say nothing, by ours.

mod direct;
mod exerciser;
mod limits;
mod linux;
mod locks;
mod pjdfstest;
