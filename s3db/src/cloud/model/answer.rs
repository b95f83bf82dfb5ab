//! What calls are answered, each kind apart.

/// An answer, by its status where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// 200: it is done.
    Done,
    /// 304: unchanged.
    Unchanged,
    /// 403: not allowed, or not yet.
    Denied,
    /// 404 to a get.
    Absent,
    /// 404 to a put that was to replace something.
    Missing,
    /// 409: another conditional call is under way.
    Conflict,
    /// 412: the condition was false.
    Refused,
    /// 429: too many requests.
    TooMany,
    /// 500: nobody knows whether it happened.
    InternalError,
    /// 503: "slow down".
    SlowDown,
    /// None.
    None,
}

impl Answer {
    /// All of them.
    pub const ALL: [Answer; 11] = [
        Answer::Done,
        Answer::Unchanged,
        Answer::Denied,
        Answer::Absent,
        Answer::Missing,
        Answer::Conflict,
        Answer::Refused,
        Answer::TooMany,
        Answer::InternalError,
        Answer::SlowDown,
        Answer::None,
    ];

    /// As a report names it.
    pub fn name(self) -> &'static str {
        match self {
            Answer::Done => "200",
            Answer::Unchanged => "304",
            Answer::Denied => "403",
            Answer::Absent => "404",
            Answer::Missing => "404 to If-Match",
            Answer::Conflict => "409",
            Answer::Refused => "412",
            Answer::TooMany => "429",
            Answer::InternalError => "500",
            Answer::SlowDown => "503",
            Answer::None => "none",
        }
    }
}
