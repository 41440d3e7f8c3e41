//! The ways to compute a product: cubek's routines, with the settings worth trying.

use cubek::matmul::multi_level::Strategy as Routine;
use cubek::matmul::multi_level::components::tile::TileMatmulKind::Cmma;
use cubek::matmul::multi_level::routines::TileSizeSelection;
use cubek::matmul::multi_level::routines::batch::double_buffering::DoubleBufferingArgs;
use cubek::matmul::multi_level::routines::batch::double_unit::DoubleUnitSelectionArgs;
use cubek::matmul::multi_level::routines::batch::ordered_double_buffering::OrderedSelectionArgs;
use cubek::matmul::multi_level::routines::batch::simple::SimpleArgs;
use cubek::matmul::multi_level::routines::batch::simple_unit::SimpleUnitSelectionArgs;
use cubek::matmul::routine::BlueprintStrategy::Inferred;
use cubek::matmul::strategy::Strategy;

use super::choice::Shape;

/// One way to compute a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// A tile a thread, in single precision, from one stage of shared memory.
    Unit,
    /// As [`Variant::Unit`], with small tiles.
    UnitSmall,
    /// As [`Variant::Unit`], from two stages, one loaded while the other is used.
    DoubleUnit,
    /// As [`Variant::DoubleUnit`], with small tiles.
    DoubleUnitSmall,
    /// Without shared memory.
    Unstaged,
    /// A vector times a matrix.
    Vector,
    /// As [`Variant::Vector`], from two stages.
    DoubleVector,
    /// A vector times a matrix, a column a thread.
    VectorColumns,
    /// Matrix units, from one stage.
    Matrix,
    /// As [`Variant::Matrix`], several rows of tiles a subgroup.
    MatrixRows,
    /// Matrix units, from two stages.
    DoubleMatrix,
    /// As [`Variant::DoubleMatrix`], with subgroups that only load.
    DoubleMatrixLoaders,
    /// As [`Variant::DoubleMatrix`], rows loaded by the subgroup that uses them, four at a time.
    OrderedMatrix4,
    /// As [`Variant::OrderedMatrix4`], eight at a time.
    OrderedMatrix8,
    /// Subgroups that load and subgroups that multiply.
    SpecializedMatrix,
}

impl Variant {
    /// All of them, by the names that the file of choices has. The first always works.
    pub(super) const ALL: [(Self, &'static str); 15] = [
        (Self::Unit, "unit"),
        (Self::UnitSmall, "unit-small"),
        (Self::DoubleUnit, "double-unit"),
        (Self::DoubleUnitSmall, "double-unit-small"),
        (Self::Unstaged, "unstaged"),
        (Self::Vector, "vector"),
        (Self::DoubleVector, "double-vector"),
        (Self::VectorColumns, "vector-columns"),
        (Self::Matrix, "matrix"),
        (Self::MatrixRows, "matrix-rows"),
        (Self::DoubleMatrix, "double-matrix"),
        (Self::DoubleMatrixLoaders, "double-matrix-loaders"),
        (Self::OrderedMatrix4, "ordered-matrix-4"),
        (Self::OrderedMatrix8, "ordered-matrix-8"),
        (Self::SpecializedMatrix, "specialized-matrix"),
    ];

    pub(super) fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(variant, _)| *variant == self);
        found.map_or("", |(_, name)| name)
    }

    pub(super) fn by_name(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, known)| *known == name);
        found.map(|(variant, _)| *variant)
    }

    /// Whether it is worth trying for products of this shape.
    pub(super) fn suits(self, shape: &Shape) -> bool {
        match self {
            Self::Unit => true,
            Self::UnitSmall | Self::DoubleUnit | Self::DoubleUnitSmall | Self::Unstaged => {
                shape.m > 1
            }
            Self::Vector | Self::DoubleVector | Self::VectorColumns => shape.m == 1,
            _ => shape.is_half(),
        }
    }

    pub(super) fn strategy(self) -> Strategy {
        let tile_size = match self {
            Self::UnitSmall | Self::DoubleUnitSmall => TileSizeSelection::MinTileSize,
            _ => TileSizeSelection::MaxTileSize,
        };
        let ordered = |rows| OrderedSelectionArgs {
            partition_k: Some(2),
            row_count: Some(rows),
            rows_per_plane: Some(2),
            tile_matmul: Cmma,
        };
        let routine = match self {
            Self::Unit | Self::UnitSmall => {
                Routine::SimpleUnit(Inferred(SimpleUnitSelectionArgs { tile_size }))
            }
            Self::DoubleUnit | Self::DoubleUnitSmall => {
                Routine::DoubleUnit(Inferred(DoubleUnitSelectionArgs { tile_size }))
            }
            Self::Unstaged => Routine::Gemm(Inferred(Default::default())),
            Self::Vector => Routine::SimpleVecMat(Inferred(().into())),
            Self::DoubleVector => Routine::DoubleVecMat(Inferred(().into())),
            Self::VectorColumns => Routine::GemvUnitPerpendicular(Inferred(Default::default())),
            Self::Matrix | Self::MatrixRows => Routine::SimpleCyclicCmma(Inferred(SimpleArgs {
                tile_matmul: Cmma,
                multi_rows: self == Self::MatrixRows,
            })),
            Self::DoubleMatrix | Self::DoubleMatrixLoaders => {
                Routine::DoubleCyclicCmma(Inferred(DoubleBufferingArgs {
                    tile_matmul: Cmma,
                    specialized: self == Self::DoubleMatrixLoaders,
                }))
            }
            Self::OrderedMatrix4 => Routine::OrderedDoubleCmma(Inferred(ordered(4))),
            Self::OrderedMatrix8 => Routine::OrderedDoubleCmma(Inferred(ordered(8))),
            Self::SpecializedMatrix => Routine::SpecializedCyclicCmma(Inferred(().into())),
        };
        Strategy::MultiLevel(routine)
    }
}
