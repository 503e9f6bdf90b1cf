"""Embedding + clusterer: detectors for any distance that is Euclidean in some embedding.

What `fit` leaves behind is told in `nbsupport.detectors`.

References
----------
.. [1] Mémoli, "Gromov-Wasserstein distances and the metric approach to object matching",
   Foundations of Computational Mathematics 11, 2011.
.. [2] Lapuschkin, Wäldchen, Binder, Montavon, Samek, Müller, "Unmasking Clever Hans predictors and
   assessing what machines really learn", Nature Communications 10, 2019.
.. [3] Anders, Neumann, Samek, Müller, Lapuschkin, "Software for dataset-wide XAI: from local
   explanations to global insights with Zennit, CoRelAy, and ViRelAy", arXiv 2106.13200, 2021.
.. [4] von Luxburg, "A tutorial on spectral clustering", Statistics and Computing 17, 2007.
"""

import numpy as np
from sklearn.decomposition import PCA

from nbsupport import distances
from nbsupport.clusterers import KMeansGroups, MixtureGroups, SpectralGroups
from nbsupport.detectors import (
    Detector,
    HeatmapDetector,
    at_least,
    one_of,
    pca_solver,
    suspect_cluster,
)
from nbsupport.embeddings import downsized

__all__ = ["DistanceMixture", "SpRAy", "VectorClustering"]


class _Embedded(Detector):
    """Embed the images, standardise or project them if asked, and cluster the vectors.

    A subclass says `_embed(X)`, `_make_clusterer()` and `n_clusters`.
    """

    standardise = False

    def _components(self) -> int | None:
        """Principal components to keep; None for the embedding itself."""
        return None

    def _split(self, X: np.ndarray) -> np.ndarray:
        if self.n_clusters != "eigengap" and len(X) < self.n_clusters:
            raise ValueError(f"n_samples={len(X)} is less than n_clusters={self.n_clusters}")
        clusterer = self._make_clusterer()
        vectors = self._embed(X)
        self.centre_ = vectors.mean(axis=0)
        scale = vectors.std(axis=0)
        # A coordinate that varies by rounding only must not be scaled up to unit variance.
        varies = scale > 1e-9 * np.abs(vectors).max()
        self.scale_ = np.where(varies, scale, 1.0) if self.standardise else np.ones_like(scale)
        self.clusterer_, self.suspect_, self.n_iter_ = None, None, 0
        self.poison_clusters_ = np.array([], dtype=np.int64)
        if not varies.any():
            return np.zeros(len(X), dtype=np.int64)
        self._fit_projection((vectors - self.centre_) / self.scale_)
        Z = self._project(vectors)
        labels = clusterer.fit(Z)
        self.clusterer_, self.n_iter_ = clusterer, clusterer.n_iter
        self.suspect_ = suspect_cluster(labels, clusterer.spread(Z))
        if self.suspect_ is not None and not clusterer.acquits:
            self.poison_clusters_ = np.array([self.suspect_])
        return labels

    def _fit_projection(self, standard: np.ndarray) -> None:
        self.pca_, self.unit_ = None, float(standard.std(axis=0).max())
        wanted = self._components()
        if wanted is not None:
            at_least("n_components", wanted)
            wanted = min(wanted, *standard.shape)
            self.pca_ = PCA(wanted, svd_solver=pca_solver(standard)).fit(standard)
            variance = self.pca_.explained_variance_
            self.n_components_ = int((variance > 1e-9 * variance[0]).sum())
            self.unit_ = float(np.sqrt(variance[0]))

    def _project(self, vectors: np.ndarray) -> np.ndarray:
        """Bring embedded maps to where they are clustered; the first spread there is 1."""
        standard = (vectors - self.centre_) / self.scale_
        if self.pca_ is not None:
            standard = self.pca_.transform(standard)[:, : self.n_components_]
        return standard / self.unit_

    def _cost(self, X: np.ndarray) -> np.ndarray:
        vectors = self._embed(X)
        if self.clusterer_ is None:
            return np.zeros((len(X), 2))
        return self.clusterer_.cost(self._project(vectors))


class VectorClustering(_Embedded):
    """Any vectors with any clusterer: the grid that tells what a method's success is due to.

    Parameters
    ----------
    clusterer : {"kmeans", "mixture", "spectral"}, default "kmeans"
        k-means; Gaussians of different covariance; or k-means among the eigenvectors of the graph
        of nearest neighbours. See `nbsupport.clusterers`.
    n_clusters : int, default 2
        Number of clusters.
    n_components : int, optional
        Principal components of the vectors that are clustered; the vectors themselves if left out.
    random_state : int, default 0
        Seed of all draws.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        See `nbsupport.detectors`.
    clusterer_ : object or None
        The fitted clusterer; None if all images are alike.

    Notes
    -----
    `X` has shape (n, d): activations, or an embedding of heatmaps (`nbsupport.embeddings`).
    Gromov-Wasserstein itself is Euclidean in no embedding: it has `HeatmapClustering`.
    """

    def __init__(self, clusterer="kmeans", n_clusters=2, n_components=None, random_state=0):
        self.clusterer = clusterer
        self.n_clusters = n_clusters
        self.n_components = n_components
        self.random_state = random_state

    def _components(self) -> int | None:
        return self.n_components

    def _embed(self, X: np.ndarray) -> np.ndarray:
        return X

    def _make_clusterer(self):
        kinds = {"kmeans": KMeansGroups, "mixture": MixtureGroups, "spectral": SpectralGroups}
        one_of("clusterer", self.clusterer, tuple(kinds))
        return kinds[self.clusterer](self.n_clusters, random_state=self.random_state)


class DistanceMixture(_Embedded, HeatmapDetector):
    """Two Gaussians on the shape of each heatmap: what 2-means on one number cannot see.

    Each map is described by the quantiles of its pixel distances under p x p: what Mémoli's
    second lower bound of GW compares. After standardising and PCA, a mixture of two Gaussians of
    *different* covariance is fitted, so that a small tight group need not cost as much as half
    of the bulk.

    Parameters
    ----------
    n_components : int, default 4
        Principal components kept; fewer where the maps do not span so many. Directions of hardly
        any variance are far from Gaussian, and with more of them the likelihood prefers two
        halves of the clean maps to a small group of poisoned ones.
    share : float, default 0.99
        Relevance kept; see `nbsupport.gw.grid_weights`.
    random_state : int, default 0
        Seed.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        See `nbsupport.detectors`.
    gap_ : float
        Mahalanobis distance of the two means under the covariance of the larger component: how
        many of its standard deviations the smaller one lies away.
    mixture_ : sklearn.mixture.GaussianMixture or None
        The fitted mixture; None if all images are alike.
    cluster_centers_ : ndarray, shape (2, components kept), or None
        Its means, in units of the first spread.
    n_iter_ : int
        Rounds of expectation maximisation of the best start.

    Notes
    -----
    `decision_function` is the logarithm of the posterior odds of the smaller component.

    At 0 % poison the mixture *still splits*, and up to half of a clean class is flagged. The
    verdict presumes that there is poison; `gap_` is what a test of that presumption can use.
    """

    def __init__(self, n_components=4, share=0.99, random_state=0):
        self.n_components = n_components
        self.share = share
        self.random_state = random_state

    n_clusters = 2
    negative = "clip"
    standardise = True

    def _components(self) -> int:
        return self.n_components

    def _embed(self, X: np.ndarray) -> np.ndarray:
        return distances.distance_quantiles(self._weights(X), shape=self.shape_)

    def _make_clusterer(self) -> MixtureGroups:
        return MixtureGroups(2, random_state=self.random_state)

    def _split(self, X: np.ndarray) -> np.ndarray:
        labels = super()._split(X)
        self.mixture_ = None if self.clusterer_ is None else self.clusterer_.mixture
        self.cluster_centers_ = None if self.mixture_ is None else self.mixture_.means_
        self.gap_ = 0.0 if self.suspect_ is None else self.clusterer_.gap(self.suspect_)
        return labels


class SpRAy(_Embedded, HeatmapDetector):
    """Spectral clustering of coarse heatmaps: SpRAy (Lapuschkin et al. 2019).

    The field's standard tool for finding odd groups among explanations. Made for an analyst who
    looks at the clusters; here the small ones are called poison, as in Activation Clustering's
    rule "relative-size".

    Parameters
    ----------
    side : int, default 16
        Cells along each side of the coarse heatmap, see `nbsupport.embeddings.downsized`.
    n_clusters : int or "eigengap", default "eigengap"
        Number of clusters. "eigengap" counts the eigenvalues before the largest gap. If it counts
        one, nothing is flagged, and labels and scores are those of a split in two.
    size_threshold : float, default 0.35
        Clusters with a smaller share of the images are poison, except the largest one.
    n_neighbors : int, default 10
        Neighbours of a map in the graph, itself included.
    max_clusters : int, default 8
        Most clusters that "eigengap" may find, 2 or more.
    n_init, random_state : int, default 10 and 0
        Starts of k-means among the eigenvectors, and the seed of its draws.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        See `nbsupport.detectors`.
    n_clusters_ : int
        Clusters counted; 1 is one group without parts.
    eigenvalues_ : ndarray, shape (max_clusters + 1,) or fewer
        Smallest eigenvalues of the normalised graph Laplacian, ascending from 0: their gap is the
        evidence for `n_clusters_`.
    inertia_ : float
        Sum of squared distances to the nearest centre, among the eigenvectors.
    n_iter_ : int
        Rounds of k-means of the best start.

    Notes
    -----
    `X` has shape (n, H, W). Relevance keeps its sign, and maps are compared cell by cell, with the
    graph, Laplacian and k-means that CoRelAy (Anders et al. 2021) takes by default. What lies at
    another place is another explanation to SpRAy: a sticker that moves becomes several groups.
    Eigenvalues rise within a wide group too, so that "eigengap" often counts parts of it.
    """

    def __init__(
        self,
        side=16,
        n_clusters="eigengap",
        size_threshold=0.35,
        n_neighbors=10,
        max_clusters=8,
        n_init=10,
        random_state=0,
    ):
        self.side = side
        self.n_clusters = n_clusters
        self.size_threshold = size_threshold
        self.n_neighbors = n_neighbors
        self.max_clusters = max_clusters
        self.n_init = n_init
        self.random_state = random_state

    def _embed(self, X: np.ndarray) -> np.ndarray:
        return downsized(X, self.side)

    def _make_clusterer(self) -> SpectralGroups:
        at_least("max_clusters", self.max_clusters, 2)
        return SpectralGroups(
            self.n_clusters, self.n_init, self.random_state, self.n_neighbors, self.max_clusters
        )

    def _split(self, X: np.ndarray) -> np.ndarray:
        labels = super()._split(X)
        if self.clusterer_ is None:
            self.n_clusters_, self.eigenvalues_, self.inertia_ = 1, np.zeros(1), 0.0
            return labels
        self.n_clusters_, self.eigenvalues_ = self.clusterer_.n_found, self.clusterer_.eigenvalues
        self.inertia_ = float(self.clusterer_.kmeans.kmeans.inertia_)
        sizes = np.bincount(labels)
        small = np.flatnonzero(sizes < self.size_threshold * len(labels))
        if len(self.poison_clusters_):
            self.poison_clusters_ = small[small != sizes.argmax()]
        # Where no cluster is small enough, scores are towards the smallest all the same.
        if len(self.poison_clusters_):
            self.suspect_ = self.poison_clusters_
        return labels
