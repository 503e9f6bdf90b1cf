"""Ways to group points, each with the cost of putting a point into each group.

scikit-learn has the algorithms; what is added is that all of them can tell, also for points that
they have not seen, how far each group is. A clusterer is used once: `fit(Z)` returns the group of
each point of `Z`, shape (n, d). Then

`cost(Z)`
    Cost of each group for each point, shape (n, groups): smaller is nearer.
`spread(Z)`
    Squared distance to the centre of each group, shape (n, groups).
`n_iter`
    Rounds of the best start.
`acquits`
    True if the points form one group only, and the groups given are halves of it.
"""

import warnings

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.csgraph import laplacian
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors, kneighbors_graph

__all__ = ["KMeansGroups", "MixtureGroups", "SpectralGroups"]


class KMeansGroups:
    """k-means; the cost is the squared distance to the centre.

    Parameters
    ----------
    n_clusters : int
        Number of groups.
    n_init, random_state : int
        Starts, of which the best is kept, and their seed.
    """

    acquits = False

    def __init__(self, n_clusters=2, n_init=10, random_state=0):
        self.kmeans = KMeans(n_clusters, n_init=n_init, random_state=random_state)

    def fit(self, Z: np.ndarray) -> np.ndarray:
        """Group the points."""
        with warnings.catch_warnings():
            # Fewer distinct points than groups: seen from the sizes, no reason for a warning.
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = self.kmeans.fit_predict(Z)
        self.n_iter = int(self.kmeans.n_iter_)
        return labels.astype(np.int64)

    def cost(self, Z: np.ndarray) -> np.ndarray:
        """Squared distance of each point to each centre."""
        return self.kmeans.transform(Z) ** 2

    spread = cost


class MixtureGroups:
    """Gaussians of different covariance; the cost is minus the logarithm of weight times density.

    Parameters
    ----------
    n_clusters, n_init, random_state
        As in `KMeansGroups`.
    """

    acquits = False

    def __init__(self, n_clusters=2, n_init=10, random_state=0):
        self.mixture = GaussianMixture(
            n_clusters,
            # Keeps a component from shrinking onto a few points, whose first spread is 1.
            reg_covar=1e-3,
            n_init=n_init,
            max_iter=200,
            init_params="k-means++",
            random_state=random_state,
        )

    def fit(self, Z: np.ndarray) -> np.ndarray:
        """Group the points."""
        self.mixture.fit(Z)
        self.n_iter = int(self.mixture.n_iter_)
        return self.mixture.predict(Z).astype(np.int64)

    def spread(self, Z: np.ndarray) -> np.ndarray:
        """Squared distance of each point to each mean."""
        return ((Z[:, None] - self.mixture.means_) ** 2).sum(axis=2)

    def cost(self, Z: np.ndarray) -> np.ndarray:
        """Half the squared Mahalanobis distance, with what makes its differences log odds."""
        precision = self.mixture.precisions_cholesky_
        whitened = np.einsum("nkd,kde->nke", Z[:, None] - self.mixture.means_, precision)
        log_det = np.log(np.diagonal(precision, axis1=1, axis2=2)).sum(axis=1)
        return 0.5 * (whitened**2).sum(axis=2) - log_det - np.log(self.mixture.weights_)

    def gap(self, suspect: int) -> float:
        """Mahalanobis distance of the suspect's mean from the nearest other component."""
        means, covariances = self.mixture.means_, self.mixture.covariances_
        others = [k for k in range(len(means)) if k != suspect]
        steps = means[others] - means[suspect]
        solved = np.linalg.solve(covariances[others], steps[:, :, None])[:, :, 0]
        return float(np.sqrt((steps * solved).sum(axis=1).min()))


class SpectralGroups:
    """Spectral clustering of the graph of nearest neighbours (von Luxburg 2007).

    Points that are equal count once in the graph, so that they end in one group. A point that was
    not there when the graph was drawn takes the place of the nearest one that was.

    Parameters
    ----------
    n_clusters : int or "eigengap"
        Number of groups. "eigengap" counts the eigenvalues of the normalised Laplacian before its
        largest gap; where that is one, `acquits` is True and two groups are made.
    n_init, random_state
        As in `KMeansGroups`, for the k-means among the eigenvectors.
    n_neighbors : int
        Neighbours of a point in the graph, itself included.
    max_clusters : int
        Most groups that "eigengap" may find.

    Notes
    -----
    The graph is that of `sklearn.cluster.SpectralClustering`: two points are tied by 1 if each is
    a neighbour of the other, by 1/2 if one is. Its eigenvalues come from a dense n x n matrix,
    which for a class of a data set (n up to a few thousand) is exact and takes seconds.
    """

    def __init__(self, n_clusters=2, n_init=10, random_state=0, n_neighbors=10, max_clusters=8):
        self.n_clusters, self.max_clusters = n_clusters, max_clusters
        self.n_init, self.random_state = n_init, random_state
        self.n_neighbors = n_neighbors

    def fit(self, Z: np.ndarray) -> np.ndarray:
        """Group the points."""
        # Points that differ by rounding only are the same point.
        digits = np.round(Z / np.abs(Z).max(), 9) if Z.any() else Z
        _, first, place = np.unique(digits, axis=0, return_index=True, return_inverse=True)
        points = Z[first]
        tied = kneighbors_graph(points, min(self.n_neighbors, len(points)), include_self=True)
        normed, root = laplacian((0.5 * (tied + tied.T)).toarray(), normed=True, return_diag=True)
        most = max(self.max_clusters, 2 if self.n_clusters == "eigengap" else self.n_clusters)
        last = min(most, len(points) - 1)
        self.eigenvalues, vectors = eigh(normed, subset_by_index=[0, last])
        found = self.n_clusters
        if found == "eigengap":
            gaps = np.diff(self.eigenvalues, append=self.eigenvalues[-1])
            # A graph in more parts than may be found has no gap but those of rounding errors.
            found = 1 + int(gaps.argmax()) if gaps.max() > 1e-9 else max(last, 1)
        self.n_found, self.acquits = found, found == 1
        count = min(max(found, 2), len(points))
        # Divided by the square root of the degree: eigenvectors of the random walk on the graph.
        self.embedding = vectors[:, :count] / root[:, None]
        self.kmeans = KMeansGroups(count, self.n_init, self.random_state)
        labels = self.kmeans.fit(self.embedding)[place]
        self.n_iter = self.kmeans.n_iter
        self.nearest = NearestNeighbors(n_neighbors=1).fit(points)
        return labels

    def cost(self, Z: np.ndarray) -> np.ndarray:
        """Squared distance to each centre, among the eigenvectors."""
        return self.kmeans.cost(self.embedding[self.nearest.kneighbors(Z)[1][:, 0]])

    spread = cost
