//! Sets of flags.

macro_rules! flags {
    ($(#[$about:meta])* $vis:vis $name:ident: $bits:ty { $($(#[$flag_about:meta])* $flag:ident = $bit:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        $vis struct $name($bits);

        #[allow(dead_code, reason = "not every set needs every operation")]
        impl $name {
            /// None of them.
            $vis const NONE: Self = Self(0);
            $($(#[$flag_about])* $vis const $flag: Self = Self(1 << $bit);)*

            /// Whether all flags of `other` are in this set.
            #[must_use]
            $vis const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// One bit for each.
            pub(crate) const fn bits(self) -> $bits {
                self.0
            }

            /// The set of these bits.
            pub(crate) const fn from_bits(bits: $bits) -> Self {
                Self(bits)
            }

            /// Whether nothing is in it.
            #[must_use]
            $vis const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Both sets together; `|` in a constant.
            #[must_use]
            $vis const fn and(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// What is in this set and not in `other`.
            #[must_use]
            $vis const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                self.and(other)
            }
        }

        impl std::ops::BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                self.0 |= other.0;
            }
        }
    };
}

pub(crate) use flags;
