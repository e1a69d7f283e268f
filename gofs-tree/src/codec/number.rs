//! Stable numbers of closed sets, for disk and wire. A number once given is never given again.

use crate::{FileType, FsError};

macro_rules! numbers {
    ($type:ident($repr:ty) { $($variant:ident = $code:literal,)* }) => {
        impl $type {
            /// Every value.
            pub const ALL: &'static [$type] = &[$($type::$variant),*];

            /// A stable number for disk and wire, never 0.
            pub fn code(self) -> $repr {
                match self {
                    $($type::$variant => $code,)*
                }
            }

            /// The value of that number.
            pub fn from_code(code: $repr) -> Option<Self> {
                match code {
                    $($code => Some($type::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

numbers! {
    FileType(u8) {
        File = 1,
        Directory = 2,
        Symlink = 3,
        Fifo = 4,
        Socket = 5,
        CharDevice = 6,
        BlockDevice = 7,
    }
}

numbers! {
    FsError(u32) {
        NotFound = 1,
        Exists = 2,
        NotDirectory = 3,
        IsDirectory = 4,
        NotEmpty = 5,
        NameTooLong = 6,
        TooManyLinks = 7,
        FileTooLarge = 8,
        NoSpace = 9,
        QuotaExceeded = 10,
        Invalid = 11,
        NotPermitted = 12,
        AccessDenied = 13,
        Loop = 14,
        NoAttribute = 15,
        Range = 16,
        TooBig = 17,
        Stale = 18,
        NotSupported = 19,
        WouldBlock = 20,
        Deadlock = 21,
        NoLocks = 22,
        Interrupted = 23,
        NoData = 24,
        ReadOnly = 25,
        Busy = 26,
        Io = 27,
        NotCached = 28,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_own_number_and_comes_back() {
        // `code` matches exhaustively, so ALL, which the same list makes, misses none.
        let mut codes: Vec<u32> = FsError::ALL.iter().map(|e| e.code()).collect();
        for error in FsError::ALL {
            assert_eq!(FsError::from_code(error.code()), Some(*error));
        }
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), FsError::ALL.len());
        assert!(!codes.contains(&0));
        assert_eq!((0..1000).filter_map(FsError::from_code).count(), FsError::ALL.len());
    }

    #[test]
    fn every_file_type_has_its_own_number_and_comes_back() {
        for file_type in FileType::ALL {
            assert_eq!(FileType::from_code(file_type.code()), Some(*file_type));
        }
        assert_eq!((0..=255).filter_map(FileType::from_code).count(), FileType::ALL.len());
    }

    #[test]
    fn numbers_on_disk_stay_what_they_were() {
        assert_eq!(FsError::NotFound.code(), 1);
        assert_eq!(FsError::NotCached.code(), 28);
        assert_eq!(FileType::BlockDevice.code(), 7);
    }
}
